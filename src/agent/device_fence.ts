// Fencing by reservation, on an agent's host: the volume's devices by the paths that it has here.
//
// DF1 The store comes first, as for a server that opens: of two that take both, one gets both.
import type { Reservation } from "../broker/broker.js";
import type { NativeBinding } from "../native.js";
import { loadDefinition } from "../volume/definition.js";

export type DeviceFence = (service: string, reservation: Reservation) => Promise<void>;

export function deviceFence(native: Pick<NativeBinding, "fenceDevices">, stateDir: string): DeviceFence {
  return async (service, reservation) => {
    const { store, origin } = loadDefinition(stateDir, service);
    await native.fenceDevices([store, origin], reservation);
  };
}
