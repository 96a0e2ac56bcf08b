#include "io/reservation.h"

#include <errno.h>

#include <algorithm>
#include <functional>

namespace csnap {
namespace {

enum class Answer { DONE, CONFLICT, AGAIN, REFUSED };

// SAM-5 status codes. Up to Linux 6.3 the ioctls return what the driver has: of SCSI the status in
// the lowest byte, with the midlayer's own remark in the next; of NVMe the status field, "do not
// retry" included. From 6.4 on enum pr_status, whose values for these are SCSI's.
constexpr int kScsiCheckCondition = 0x02;
constexpr int kScsiReservationConflict = 0x18;
constexpr int kScsiMidlayerMask = 0xff00;
constexpr int kNvmeReservationConflict = 0x83;
constexpr int kNvmeDoNotRetry = 0x4000;

Answer read_answer(int result) {
  if (result == 0) return Answer::DONE;
  if (result < 0) return Answer::REFUSED;
  if ((result & ~kScsiMidlayerMask) == kScsiReservationConflict ||
      (result & ~kNvmeDoNotRetry) == kNvmeReservationConflict)
    return Answer::CONFLICT;
  return (result & ~kScsiMidlayerMask) == kScsiCheckCondition ? Answer::AGAIN : Answer::REFUSED;
}

// A host is told of what others have changed by a check condition on its next command ("unit
// attention"), once for each change; older kernels hand it to whoever asked. What is asked here may
// be asked twice.
int ask(const std::function<int()>& command) {
  constexpr int kTriesMax = 5;
  int result = command();
  for (int tries = 1; tries < kTriesMax && read_answer(result) == Answer::AGAIN; tries++)
    result = command();
  return result;
}

Status unsupported(const ReservationPort& port) {
  return Status(Code::NOT_SUPPORTED,
                port.name() +
                    " takes no persistent reservations: use a SCSI or NVMe device that does, or "
                    "declare --fence command=CMD");
}

Status refused(const ReservationPort& port, const char* what, int result) {
  if (result == -EOPNOTSUPP || result == -ENOTTY || result == -EINVAL) return unsupported(port);
  if (result == -EPERM || result == -EACCES)
    return Status(Code::PERMISSION,
                  port.name() + ": reservations need CAP_SYS_ADMIN: run this as root", -result);
  const std::string step = port.name() + ": " + what + " of a persistent reservation";
  if (result < 0) return Status::from_errno(-result, step);
  return Status(Code::IO_ERROR, step + " ended with the device's status " + std::to_string(result) +
                                    ": see the kernel's log");
}

Status closed(const ReservationPort& port) {
  return Status(Code::FENCED,
                port.name() + ": the grant of this server's epoch has ended; it reserves nothing");
}

}  // namespace

Status take_reservation(ReservationPort& port, const ReservationKeys& keys, Gate* gate) {
  const auto may_go_on = [&] { return gate == nullptr || gate->admit(); };
  if (!may_go_on()) return closed(port);
  const int registered = ask([&] { return port.register_key(0, keys.own, true); });
  if (registered != 0) return refused(port, "registering", registered);
  for (const uint64_t other : keys.others) {
    if (other == keys.own) continue;
    if (!may_go_on()) return closed(port);
    const int preempted = ask([&] { return port.preempt_and_abort(keys.own, other); });
    const Answer answer = read_answer(preempted);
    // RV3: a conflict says that this key is not registered, or ours; reserving tells which.
    if (answer != Answer::DONE && answer != Answer::CONFLICT)
      return refused(port, "preempting", preempted);
  }
  int reserved = ask([&] { return port.reserve(keys.own); });
  if (read_answer(reserved) == Answer::CONFLICT) {
    // Perhaps it is this host's, by a path that is gone (RV3). Other paths lose their
    // registrations.
    if (!may_go_on()) return closed(port);
    ask([&] { return port.preempt_and_abort(keys.own, keys.own); });
    const int again = ask([&] { return port.register_key(0, keys.own, true); });
    if (again != 0) return refused(port, "registering", again);
    reserved = ask([&] { return port.reserve(keys.own); });
  }
  if (reserved == 0) return Status();
  if (read_answer(reserved) != Answer::CONFLICT) return refused(port, "reserving", reserved);
  // Or it would let pass what this host still has under way, under the other's reservation.
  port.register_key(keys.own, 0, false);
  return Status(Code::FENCED,
                port.name() +
                    " is reserved for another host, of a newer epoch or unknown to this broker: if "
                    "none serves it, `sg_persist --in --read-full-status " +
                    port.name() + "` shows whose the reservation is");
}

Status probe_reservation(ReservationPort& port) {
  constexpr uint64_t kNobodysKey = 0x637370726f6265;  // "csprobe"
  const int result = ask([&] { return port.register_key(kNobodysKey, 0, false); });
  switch (read_answer(result)) {
    case Answer::CONFLICT:
    case Answer::DONE:
      return Status();
    case Answer::AGAIN:  // an illegal request, as often as it is asked
      return unsupported(port);
    case Answer::REFUSED:
      break;
  }
  return result < 0 ? refused(port, "probing", result) : unsupported(port);
}

Status clear_reservation(ReservationPort& port, uint64_t own_key) {
  const int registered = ask([&] { return port.register_key(0, own_key, true); });
  if (registered != 0) return refused(port, "registering", registered);
  const int cleared = ask([&] { return port.clear(own_key); });
  return cleared == 0 ? Status() : refused(port, "clearing", cleared);
}

}  // namespace csnap
