#include "netlink/kernel_socket.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <algorithm>

namespace csnap::netlink {
namespace {

constexpr int kBufferBytes = 4 << 20;
constexpr int kKeepIdleSeconds = 5;
constexpr int kKeepIntervalSeconds = 2;
constexpr int kKeepProbes = 3;
constexpr uint32_t kSilenceMaxMs = INT32_MAX;

Status set(int fd, int level, int option, int value, const char* name) {
  if (setsockopt(fd, level, option, &value, sizeof value) == 0) return Status();
  return Status::from_errno(errno, std::string("socket option ") + name);
}

// With CAP_NET_ADMIN beyond the system's bound. Without it a TCP socket stays as it is: its own
// tuning reaches further than a bounded setting would. A unix socket stays as it is in any case:
// what is under way in it is taken from the memory the kernel keeps for writing back, a few MiB
// where memory is short, and a send that finds none left breaks the connection.
void enlarge(int fd) {
  const int bytes = kBufferBytes;
  for (const int option : {SO_SNDBUFFORCE, SO_RCVBUFFORCE})
    (void)setsockopt(fd, SOL_SOCKET, option, &bytes, sizeof bytes);
}

Status set_up_tcp(int fd, uint32_t silence_ms) {
  const auto limit = static_cast<int>(std::min(silence_ms, kSilenceMaxMs));
  CSNAP_TRY(set(fd, IPPROTO_TCP, TCP_NODELAY, 1, "TCP_NODELAY"));
  CSNAP_TRY(set(fd, SOL_SOCKET, SO_KEEPALIVE, 1, "SO_KEEPALIVE"));
  CSNAP_TRY(set(fd, IPPROTO_TCP, TCP_KEEPIDLE, kKeepIdleSeconds, "TCP_KEEPIDLE"));
  CSNAP_TRY(set(fd, IPPROTO_TCP, TCP_KEEPINTVL, kKeepIntervalSeconds, "TCP_KEEPINTVL"));
  CSNAP_TRY(set(fd, IPPROTO_TCP, TCP_KEEPCNT, kKeepProbes, "TCP_KEEPCNT"));
  return set(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, limit, "TCP_USER_TIMEOUT");
}

}  // namespace

Result<UniqueFd> prepare_kernel_socket(int fd, uint32_t silence_ms) {
  UniqueFd copy(fcntl(fd, F_DUPFD_CLOEXEC, 3));
  if (!copy) return Status::from_errno(errno, "a socket can't be duplicated");
  int type = 0;
  int domain = 0;
  socklen_t length = sizeof type;
  const bool known = getsockopt(copy.get(), SOL_SOCKET, SO_TYPE, &type, &length) == 0 &&
                     getsockopt(copy.get(), SOL_SOCKET, SO_DOMAIN, &domain, &length) == 0;
  const bool tcp = domain == AF_INET || domain == AF_INET6;
  if (!known || type != SOCK_STREAM || (!tcp && domain != AF_UNIX))
    return Status(Code::INVALID_ARGUMENT,
                  "descriptor " + std::to_string(fd) +
                      " is neither a TCP nor a unix stream socket; the kernel takes no other",
                  EINVAL);
  const int flags = fcntl(copy.get(), F_GETFL);
  if (flags < 0 || fcntl(copy.get(), F_SETFL, flags & ~O_NONBLOCK) != 0)  // K1
    return Status::from_errno(errno, "a socket can't be made blocking");
  if (tcp) {
    CSNAP_TRY(set_up_tcp(copy.get(), silence_ms));  // K2
    enlarge(copy.get());
  }
  return copy;
}

Status shutdown_socket(int fd) {
  if (shutdown(fd, SHUT_RDWR) == 0 || errno == ENOTCONN) return Status();
  return Status::from_errno(errno, "descriptor " + std::to_string(fd) + " can't be shut down");
}

}  // namespace csnap::netlink
