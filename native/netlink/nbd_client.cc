#include "netlink/nbd_client.h"

#include <errno.h>
#include <linux/nbd-netlink.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <bit>

#include "base/sync.h"
#include "netlink/exchange.h"
#include "netlink/refusal.h"

namespace csnap::netlink {
namespace {

constexpr uint64_t kBlockMin = 512;
constexpr uint64_t kFlagCanMultiConn = 1 << 8;
constexpr size_t kSocketsMax = 64;  // far beyond what pays; keeps the message small
constexpr size_t kBackendMax = 255;
constexpr uint64_t kSizeMax = INT64_MAX;
// The kernel multiplies seconds by its tick rate, at most 1000, in a signed long.
constexpr uint64_t kSecondsMax = INT32_MAX / 1000;

// ---- The family --------------------------------------------------------------------------------

// Without destructors: threads may use them while the process ends.
constinit Mutex family_mutex;
constinit Family known_family;  // id 0: not known

Result<Family> ask_family() {
  CSNAP_TRY_ASSIGN(NetlinkSocket socket, NetlinkSocket::open());
  const uint32_t sequence = socket.next_sequence();
  MessageWriter request = family_request(sequence);
  std::optional<Family> found;
  CSNAP_TRY_ASSIGN(const Verdict verdict,
                   socket.ask(request.finish(), sequence,
                              [&](const GenericMessage& answer) { found = as_family(answer); }));
  if (verdict.error == ENOENT) return no_family();
  if (verdict.error != 0)
    return Status::from_errno(verdict.error, "the nbd netlink family can't be looked up");
  if (!found || found->id == 0)
    return Status(Code::IO_ERROR, "the kernel described its nbd netlink family in no known way");
  return *found;
}

// ---- One command -------------------------------------------------------------------------------

using MakeRequest = std::function<MessageWriter(uint16_t family, uint32_t sequence)>;
using TakeAnswer = std::function<void(const GenericMessage&)>;

Result<Verdict> ask_once(const Family& family, const MakeRequest& make, const TakeAnswer& answer) {
  CSNAP_TRY_ASSIGN(NetlinkSocket socket, NetlinkSocket::open());  // C1
  const uint32_t sequence = socket.next_sequence();
  MessageWriter request = make(family.id, sequence);
  return socket.ask(request.finish(), sequence, answer);
}

Result<Verdict> run_command(const MakeRequest& make, const TakeAnswer& answer) {
  CSNAP_TRY_ASSIGN(const Family family, find_family());
  Result<Verdict> verdict = ask_once(family, make, answer);
  if (!verdict.ok() || verdict.value().error != ENOENT) return verdict;
  CSNAP_TRY_ASSIGN(const Family now, refresh_family());  // C3
  return ask_once(now, make, answer);
}

// ---- What is refused without asking (C2) -------------------------------------------------------

Status wrong(std::string what) { return Status(Code::INVALID_ARGUMENT, std::move(what), EINVAL); }

Status check_seconds(const char* name, uint64_t seconds) {
  if (seconds <= kSecondsMax) return Status();
  return wrong(std::string(name) + " of " + std::to_string(seconds) + " s is too long; at most " +
               std::to_string(kSecondsMax) + " s");
}

Status check_backend(const std::string& backend) {
  if (backend.empty() || backend.size() > kBackendMax)
    return wrong("the backend's name must have 1 to 255 characters");
  for (const char c : backend)
    if (c <= ' ' || c > '~') return wrong("the backend's name may hold printable characters only");
  return Status();
}

Status check_size(uint64_t bytes, uint64_t block_bytes) {
  if (bytes == 0 || bytes > kSizeMax)
    return wrong("a device of " + std::to_string(bytes) + " bytes can't be made");
  if (bytes % block_bytes != 0)
    return wrong("a size of " + std::to_string(bytes) + " bytes is no multiple of the block size " +
                 std::to_string(block_bytes));
  return Status();
}

Status check_socket(int fd) {
  const std::string name = "descriptor " + std::to_string(fd);
  int type = 0;
  int domain = 0;
  socklen_t length = sizeof type;
  if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &length) != 0)
    return errno == ENOTSOCK ? wrong(name + " is no socket")
                             : Status::from_errno(errno, name + " is of no use");
  length = sizeof domain;
  if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &length) != 0)
    return Status::from_errno(errno, name + " is of no use");
  if (type != SOCK_STREAM || (domain != AF_UNIX && domain != AF_INET && domain != AF_INET6))
    return wrong(name + " is neither a TCP nor a unix stream socket; the kernel takes no other");
  return Status();
}

Status check_sockets(const std::vector<int>& fds) {
  if (fds.size() > kSocketsMax)
    return wrong(std::to_string(fds.size()) + " sockets are too many; at most " +
                 std::to_string(kSocketsMax));
  for (const int fd : fds) CSNAP_TRY(check_socket(fd));
  return Status();
}

Status check_connect(const ConnectOptions& options, const std::vector<int>& fds) {
  const uint64_t block = options.block_bytes;
  const auto page = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  if (block < kBlockMin || block > page || !std::has_single_bit(block))
    return wrong("a block size of " + std::to_string(block) +
                 " bytes can't be had; it must be a power of two from 512 to " +
                 std::to_string(page));
  CSNAP_TRY(check_size(options.size_bytes, block));
  CSNAP_TRY(check_seconds("a timeout", options.timeout_seconds));
  CSNAP_TRY(check_seconds("a dead connection's timeout", options.dead_connection_timeout_seconds));
  CSNAP_TRY(check_backend(options.backend));
  if (fds.empty()) return wrong("a device needs a socket");
  if (fds.size() > 1 && (options.transmission_flags & kFlagCanMultiConn) == 0)
    return wrong("several sockets need a server that offers CAN_MULTI_CONN");
  return check_sockets(fds);
}

Status check_reconfigure(const ReconfigureOptions& options, const std::vector<int>& fds) {
  CSNAP_TRY(check_backend(options.backend));
  if (options.timeout_seconds) CSNAP_TRY(check_seconds("a timeout", *options.timeout_seconds));
  if (options.dead_connection_timeout_seconds)
    CSNAP_TRY(
        check_seconds("a dead connection's timeout", *options.dead_connection_timeout_seconds));
  if (options.size_bytes) {
    if (!fds.empty())
      return wrong("a new size never goes with new sockets: on a dead link the kernel would hang");
    CSNAP_TRY(check_size(*options.size_bytes, kBlockMin));
  }
  return check_sockets(fds);
}

}  // namespace

Result<Family> find_family() {
  {
    const MutexLock lock(family_mutex);
    if (known_family.id != 0) return known_family;
  }
  return refresh_family();
}

Result<Family> refresh_family() {
  // Not under the mutex: the kernel may not answer while one of its devices is stuck.
  CSNAP_TRY_ASSIGN(const Family found, ask_family());
  const MutexLock lock(family_mutex);
  known_family = found;
  return found;
}

Result<uint32_t> connect_device(const ConnectOptions& options, const std::vector<int>& fds) {
  CSNAP_TRY(check_connect(options, fds));
  std::optional<uint32_t> index;
  CSNAP_TRY_ASSIGN(const Verdict verdict,
                   run_command(
                       [&](uint16_t family, uint32_t sequence) {
                         return connect_request(family, sequence, options, fds);
                       },
                       [&](const GenericMessage& answer) { index = as_index(answer); }));
  if (verdict.error != 0) return connect_refused(options.index, verdict);
  if (!index)
    return Status(Code::IO_ERROR,
                  "the kernel made a device and did not say which; look for backend " +
                      options.backend + " in /sys/block/nbd*/backend");
  return *index;
}

Status reconfigure_device(const ReconfigureOptions& options, const std::vector<int>& fds) {
  CSNAP_TRY(check_reconfigure(options, fds));
  CSNAP_TRY_ASSIGN(const Verdict verdict, run_command(
                                              [&](uint16_t family, uint32_t sequence) {
                                                return reconfigure_request(family, sequence,
                                                                           options, fds);
                                              },
                                              [](const GenericMessage&) {}));
  if (verdict.error != 0) return reconfigure_refused(options, verdict);
  return Status();
}

Status disconnect_device(uint32_t index) {
  CSNAP_TRY_ASSIGN(const Verdict verdict, run_command(
                                              [&](uint16_t family, uint32_t sequence) {
                                                return disconnect_request(family, sequence, index);
                                              },
                                              [](const GenericMessage&) {}));
  if (verdict.error != 0) return disconnect_refused(index, verdict);
  return Status();
}

Result<std::vector<DeviceStatus>> device_status() {
  std::optional<std::vector<DeviceStatus>> devices;
  CSNAP_TRY_ASSIGN(
      const Verdict verdict,
      run_command(
          [&](uint16_t family, uint32_t sequence) { return status_request(family, sequence); },
          [&](const GenericMessage& answer) { devices = as_devices(answer); }));
  if (verdict.error != 0) return status_refused(verdict);
  if (!devices) return Status(Code::IO_ERROR, "the kernel's list of nbd devices makes no sense");
  return std::move(*devices);
}

}  // namespace csnap::netlink
