// The control API of one served volume: a unix socket beside its NBD socket. `csnap serve` starts it
// once the volume is open (so its socket exists only while this process holds the store's lock).
import { CsnapError } from "../volume/errors.js";
import type { VolumeOperations } from "../volume/operations.js";
import {
  type CheckLine,
  parseCheck,
  parseCreateSnapshot,
  parseDelete,
  parseEndHold,
  parsePropertyChanges,
  parseSnapshotChanges,
} from "./api.js";
import type { EventHub } from "./events.js";
import {
  type Exchange,
  errorBody,
  JsonService,
  type Route,
  sendJson,
  streamBacklogLimitBytes,
} from "./service.js";

type Operations = Omit<VolumeOperations, "close">;

export interface ControlServerOptions {
  readonly socketPath: string;
  readonly operations: Operations;
  readonly events: EventHub;
}

export class ControlServer extends JsonService {
  constructor({ socketPath, operations, events }: ControlServerOptions) {
    super({ socketPath, events, routes: routesOf(operations) });
  }
}

function routesOf(operations: Operations): Route[] {
  return [
    { path: "v1/status", methods: { GET: async (x) => sendJson(x, 200, await operations.status()) } },
    {
      path: "v1/snapshots",
      methods: {
        GET: async (x) => sendJson(x, 200, await operations.snapshots()),
        POST: async (x) => sendJson(x, 201, await operations.createSnapshot(parseCreateSnapshot(x.body))),
      },
    },
    {
      path: "v1/snapshots/delete",
      methods: {
        POST: async (x) => {
          const { ids, dryRun } = parseDelete(x.body);
          sendJson(x, 200, await operations.deleteSnapshots(ids, dryRun));
        },
      },
    },
    {
      path: "v1/snapshots/:id",
      methods: {
        GET: (x) => getSnapshot(operations, x),
        PATCH: async (x) =>
          sendJson(x, 200, await operations.updateSnapshot(x.id, parseSnapshotChanges(x.body))),
        DELETE: async (x) => sendJson(x, 200, await operations.deleteSnapshots([x.id], false)),
      },
    },
    {
      path: "v1/properties",
      methods: {
        PATCH: async (x) => sendJson(x, 200, await operations.updateProperties(parsePropertyChanges(x.body))),
      },
    },
    {
      path: "v1/hold",
      methods: {
        DELETE: async (x) =>
          sendJson(x, 200, { ended: await operations.endHold(parseEndHold(x.url.searchParams)) }),
      },
    },
    { path: "v1/check", methods: { POST: (x) => streamCheck(operations, x) } },
    { path: "v1/dump", methods: { GET: (x) => streamDump(operations, x) } },
  ];
}

async function getSnapshot(operations: Operations, x: Exchange): Promise<void> {
  const snapshots = await operations.snapshots();
  const found = snapshots.find((s) => s.name === x.id) ?? snapshots.find((s) => s.uuid === x.id);
  if (!found) throw new CsnapError("NOT_FOUND", `snapshot '${x.id}' does not exist`);
  sendJson(x, 200, found);
}

/** The status line is sent before the outcome is known, so an error is the stream's last line. */
async function streamCheck(operations: Operations, { response, body }: Exchange): Promise<void> {
  const { data } = parseCheck(body);
  response.writeHead(200, { "Content-Type": "application/x-ndjson" });
  const line = (value: CheckLine) => response.write(`${JSON.stringify(value)}\n`);
  try {
    const report = await operations.check({
      data,
      onProgress: (done, total) => {
        if (response.writableLength < streamBacklogLimitBytes) line({ progress: { done, total } });
      },
    });
    line({ report });
  } catch (error) {
    line({ error: errorBody(error) });
  }
  response.end();
}

/** A dump that breaks off ends without the final chunk, which the client takes for an error. */
async function streamDump(operations: Operations, { response }: Exchange): Promise<void> {
  response.writeHead(200, { "Content-Type": "application/x-ndjson" });
  await operations.dump(response);
  response.end();
}
