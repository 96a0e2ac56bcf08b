// Persistent reservations of SCSI (SPC-4, "Persistent reservations") and NVMe (Base Specification,
// "Reservations"): how one host at a time may write a device that several reach, and how a lost
// host's writes are refused by the device itself (rule F8). Callers: the addon (a server that
// opens, an agent that fences).
//
// A device knows a host by its path to it (an I_T nexus; of NVMe the host identifier), not by its
// processes. Each host registers a key of its own, and one registrant holds a reservation of the
// type "write exclusive, registrants only": who is not registered can't write, and everybody can
// read.
//
// Why two hosts never write at once:
//  RV1  A host registers only while it holds origin and store exclusively in its own kernel
//       (FileDevice's FD1). So no former server of it is left, whose late writes the registration
//       would let pass again.
//  RV2  Taking is: register the own key, preempt all others that may be registered, reserve. A
//       server writes nothing before reserving has succeeded on both devices, and registers no
//       more after that.
//  RV3  A fence is the same, done by another host. Its proof is that reserving has succeeded and
//       that each preempting either removed a key or met none. One that was removed by an earlier
//       try is no error; nor is it a proof, as the device answers the same to a host that is not
//       registered itself. But that one can't reserve. Where reserving meets a reservation of the
//       own key, it is this host's by another path (an adapter was replaced, a path is down): that
//       is preempted, too.
//  RV4  By the order in which the device sees them: a server that reserved before the fence
//       preempted has lost its registration, with what it had under way (PREEMPT AND ABORT). One
//       that reserves between the two makes the fence's reserving fail. One that comes later (it
//       was stopped between its claim and its registration) takes the reservation away again, but
//       its gate has closed for good by then (F2, and broker/transitions.ts TR5): it writes
//       nothing.
//  RV5  What was taken is never given back, by a server that stops in order neither: from the first
//       term on the device is never without a reservation, so that the writes of a host fenced two
//       terms ago, which is stopped to this day, are still refused. The next server preempts.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/gate.h"
#include "base/status.h"

namespace csnap {

// What a host may ask of one device. Each returns what the kernel's ioctl does: 0, -errno, or a
// status of the device above 0. Blocking.
class ReservationPort {
 public:
  virtual ~ReservationPort() = default;
  virtual const std::string& name() const = 0;
  // `ignore`: whatever key this host has is replaced; else it must have `own_key` (0: none).
  virtual int register_key(uint64_t own_key, uint64_t new_key, bool ignore) = 0;
  virtual int reserve(uint64_t own_key) = 0;
  // Removes the registration of `other_key`, aborts its commands, and takes its reservation over.
  virtual int preempt_and_abort(uint64_t own_key, uint64_t other_key) = 0;
  // Removes all registrations and the reservation.
  virtual int clear(uint64_t own_key) = 0;
};

struct ReservationKeys {
  uint64_t own = 0;              // not 0
  std::vector<uint64_t> others;  // of hosts that may be registered; may hold `own`
};

// RV2, RV3. `gate`: of the term; while it is closed nothing more is asked of the device (FENCED).
// Null: a fence. Errors: FENCED (also where a host that is not among the others holds the
// reservation), NOT_SUPPORTED, PERMISSION, IO_ERROR: it is not known then who may write.
Status take_reservation(ReservationPort& port, const ReservationKeys& keys, Gate* gate);

// Whether the device takes reservations; changes nothing. NOT_SUPPORTED says why not. Asked is the
// removal of a key that nobody has: a device that knows of reservations answers with a conflict.
Status probe_reservation(ReservationPort& port);

// Everybody who reaches the device may write again: where no reservation shall guard it any more.
Status clear_reservation(ReservationPort& port, uint64_t own_key);

}  // namespace csnap
