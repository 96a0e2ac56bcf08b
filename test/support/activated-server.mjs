/** A server that a service manager starts with its listening socket as descriptor 3; for socket activation tests. */
import { spawnSync } from "node:child_process";
import { inheritedDescriptors } from "../../dist/nbd/listen.js";
import { NbdServer } from "../../dist/nbd/server.js";

const info = (name) => ({
  name,
  kind: name.includes("@") ? "snapshot" : "origin",
  sizeBytes: 1 << 20,
  readOnly: name.includes("@"),
  description: "socket activated",
  minBlockBytes: 1,
  preferredBlockBytes: 4096,
  maxPayloadBytes: 1 << 25,
});
const names = ["vol", "vol@monday", "vol@tuesday"];
const server = new NbdServer({
  directory: { list: () => names.map(info), resolve: ({ name }) => info(name === "" ? "vol" : name) },
  startTransmission: () => {
    throw new Error("this server only lists");
  },
});
for (const fd of inheritedDescriptors(process.env, process.pid)) {
  console.error(`ready ${await server.listenInherited(fd)}`);
}
// The listening socket must not leak into children, or a peer would never see its end.
const { stdout } = spawnSync("readlink", ["/proc/self/fd/3"], { encoding: "utf8" });
console.error(`a child has descriptor 3: ${stdout.trim() || "no"}`);
