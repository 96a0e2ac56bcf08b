// Properties as `csnap get` shows and `csnap set` takes them: names with dashes, sizes with units.
import { CsnapError, usageError } from "../volume/errors.js";
import type { SnapshotRecord, VolumeProperties } from "../volume/model.js";
import { checkLabel, checkPriority } from "../volume/names.js";
import type { PropertyChanges, SnapshotChanges } from "../volume/operations.js";
import { parseSize, sizeArgument } from "../volume/sizes.js";

export interface PropertyRow {
  readonly property: string;
  /** in the form that `csnap set` takes */
  readonly value: string;
}

const sizeProperties = {
  "staged-limit": "staged_limit",
  "cache-limit": "cache_limit",
  "reclaim-rate": "reclaim_rate",
} as const;

export function volumeRows(properties: VolumeProperties): PropertyRow[] {
  return [
    { property: "on-full", value: properties.on_full },
    ...Object.entries(sizeProperties).map(([property, key]) => ({
      property,
      value: sizeArgument(properties[key]),
    })),
  ];
}

export function snapshotProperties(snapshot: SnapshotRecord) {
  const { uuid, pinned, priority, labels } = snapshot;
  return { uuid, pinned, priority, labels };
}

export function snapshotRows(snapshot: SnapshotRecord): PropertyRow[] {
  return [
    { property: "pin", value: snapshot.pinned ? "on" : "off" },
    { property: "priority", value: String(snapshot.priority) },
    ...Object.entries(snapshot.labels)
      .sort(([a], [b]) => (a < b ? -1 : 1))
      .map(([key, value]) => ({ property: `label.${key}`, value })),
  ];
}

export function findSnapshot(
  snapshots: readonly SnapshotRecord[],
  volume: string,
  name: string,
): SnapshotRecord {
  const found = snapshots.find((snapshot) => snapshot.name === name);
  if (found) return found;
  throw new CsnapError(
    "NOT_FOUND",
    `${volume}@${name} does not exist: \`csnap list ${volume}\` shows the snapshots`,
  );
}

function split(assignment: string): [property: string, value: string] {
  const at = assignment.indexOf("=");
  if (at < 1) throw usageError(`'${assignment}' is not PROPERTY=VALUE`);
  return [assignment.slice(0, at), assignment.slice(at + 1)];
}

export function parseVolumeAssignments(assignments: readonly string[]): PropertyChanges {
  const changes: { -readonly [K in keyof PropertyChanges]: PropertyChanges[K] } = {};
  for (const assignment of assignments) {
    const [property, value] = split(assignment);
    if (property === "on-full") {
      if (value !== "drop-snapshots" && value !== "refuse-writes") {
        throw usageError(`on-full '${value}' is not allowed: it is drop-snapshots or refuse-writes`);
      }
      changes.on_full = value;
    } else if (isSizeProperty(property)) {
      changes[sizeProperties[property]] = parseSize(value, property);
    } else {
      throw usageError(
        `a volume has no property '${property}': it has on-full, ${Object.keys(sizeProperties).join(", ")} (pin, priority and label.K belong to snapshots)`,
      );
    }
  }
  return changes;
}

function isSizeProperty(property: string): property is keyof typeof sizeProperties {
  return Object.hasOwn(sizeProperties, property);
}

export function parseSnapshotAssignments(assignments: readonly string[]): SnapshotChanges {
  const changes: { pinned?: boolean; priority?: number } = {};
  const labels: Record<string, string> = {};
  for (const assignment of assignments) {
    const [property, value] = split(assignment);
    if (property === "pin") {
      if (value !== "on" && value !== "off")
        throw usageError(`pin '${value}' is not allowed: it is on or off`);
      changes.pinned = value === "on";
    } else if (property === "priority") {
      changes.priority = checkPriority(/^\d+$/.test(value) ? Number(value) : Number.NaN);
    } else if (property.startsWith("label.")) {
      const key = property.slice("label.".length);
      checkLabel(key, value);
      labels[key] = value;
    } else {
      throw usageError(`a snapshot has no property '${property}': it has pin, priority and label.K`);
    }
  }
  return { ...changes, ...(Object.keys(labels).length > 0 && { labels }) };
}
