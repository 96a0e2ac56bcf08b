/** A small fixed export directory for handshake tests: the origin `vol`, two snapshots, one hidden without TLS. */
import {
  blockSizes,
  describeVolume,
  type ExportDirectory,
  type ExportInfo,
  unknownExport,
} from "../../src/nbd/exports.js";

export const SIZE_BYTES = 5 * 1024 ** 3 + 4096;
export const DESCRIPTION = describeVolume({
  uuid: "6f1c4d8e-0d2b-4a55-9a3e-3f6d0f2b7a11",
  durabilityId: "1f00aa5577cc3311",
  epoch: 7n,
});

export function exportNamed(name: string, chunkBytes = 16384): ExportInfo {
  const snapshot = name.includes("@");
  return {
    name,
    kind: snapshot ? "snapshot" : "origin",
    sizeBytes: SIZE_BYTES,
    readOnly: snapshot,
    description: DESCRIPTION,
    ...blockSizes(chunkBytes),
  };
}

/** `tlsOnly` names are omitted from LIST and answered TLS_REQD without TLS. */
export function fixedDirectory(names: readonly string[], tlsOnly: readonly string[] = []): ExportDirectory {
  return {
    list: ({ tls }) =>
      names.filter((name) => tls || !tlsOnly.includes(name)).map((name) => exportNamed(name)),
    resolve: ({ name: asked, client, attachment }) => {
      const name = asked === "" ? (names[0] ?? "") : asked;
      if (!names.includes(name)) return unknownExport(asked);
      if (tlsOnly.includes(name) && !client.tls)
        return { refused: "TLS_REQD", text: `'${name}' requires TLS` };
      if (attachment !== undefined && attachment.attempt < 3) {
        return { refused: "POLICY", text: "a newer attempt of this attachment is connected" };
      }
      return exportNamed(name);
    },
  };
}
