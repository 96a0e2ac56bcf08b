#include "netlink/exchange.h"

#include <errno.h>
#include <linux/netlink.h>
#include <sys/socket.h>
#include <sys/time.h>

namespace csnap::netlink {
namespace {

// A datagram of the kernel's is at most a page or its one answer; a device list is nested in one
// attribute and so never longer than 64 KiB.
constexpr size_t kDatagramMax = 128 << 10;
// Of notices that wait to be read: thousands of dead links at once.
constexpr int kReceiveBufferBytes = 1 << 20;

void set_option(int fd, int level, int option, int value) {
  // Each only improves something; an old kernel that has not got it is no reason to stop.
  (void)setsockopt(fd, level, option, &value, sizeof value);
}

Status nonsense() {
  return Status(Code::IO_ERROR, "the kernel's netlink answer makes no sense; is it a patched one?");
}

}  // namespace

NetlinkSocket::NetlinkSocket(UniqueFd fd) : fd_(std::move(fd)), buffer_(kDatagramMax) {}

Result<NetlinkSocket> NetlinkSocket::open() {
  UniqueFd fd(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_GENERIC));
  if (!fd)
    return Status(Code::NOT_SUPPORTED,
                  "no generic netlink socket can be had: the kernel lacks it, or a sandbox "
                  "(RestrictAddressFamilies=) forbids AF_NETLINK",
                  errno);
  sockaddr_nl own = {};
  own.nl_family = AF_NETLINK;
  if (bind(fd.get(), reinterpret_cast<const sockaddr*>(&own), sizeof own) != 0)
    return Status::from_errno(errno, "a netlink socket can't be bound");
  set_option(fd.get(), SOL_NETLINK, NETLINK_EXT_ACK, 1);
  set_option(fd.get(), SOL_NETLINK, NETLINK_CAP_ACK, 1);
  set_option(fd.get(), SOL_SOCKET, SO_RCVBUF, kReceiveBufferBytes);
  const timeval limit = {kAnswerSeconds, 0};
  if (setsockopt(fd.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) != 0)
    return Status::from_errno(errno, "a netlink socket can't be set up");
  return NetlinkSocket(std::move(fd));
}

Status NetlinkSocket::join_group(uint32_t group) {
  if (setsockopt(fd_.get(), SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &group, sizeof group) != 0)
    return Status::from_errno(errno, "a netlink group can't be joined");
  return Status();
}

Result<NetlinkSocket::Received> NetlinkSocket::receive() {
  sockaddr_nl sender = {};
  iovec piece = {buffer_.data(), buffer_.size()};
  msghdr message = {};
  message.msg_name = &sender;
  message.msg_namelen = sizeof sender;
  message.msg_iov = &piece;
  message.msg_iovlen = 1;
  const ssize_t n = recvmsg(fd_.get(), &message, 0);
  if (n < 0 && errno == ENOBUFS) return Received{{}, true};
  if (n < 0 && errno == EINTR) return Received{};
  if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
    return Status(Code::IO_ERROR, "the kernel did not answer a netlink request", ETIMEDOUT);
  if (n < 0) return Status::from_errno(errno, "netlink");
  if ((message.msg_flags & MSG_TRUNC) != 0) return nonsense();
  if (message.msg_namelen < sizeof sender || sender.nl_pid != 0) return Received{};  // E1
  return Received{Bytes(buffer_.data(), static_cast<size_t>(n)), false};
}

Result<bool> NetlinkSocket::digest(Bytes datagram, uint32_t sequence,
                                   const std::function<void(const GenericMessage&)>& answer,
                                   Verdict& verdict) {
  MessageReader reader(datagram);
  Message message;
  while (reader.next(message)) {
    if (message.sequence != sequence) continue;  // E2
    if (message.type == NLMSG_ERROR) {
      const auto found = as_verdict(message);
      if (!found) return nonsense();
      verdict = *found;
      return true;
    }
    if (message.type < NLMSG_MIN_TYPE) continue;  // NOOP, DONE
    const auto generic = as_generic(message);
    if (!generic) return nonsense();
    answer(*generic);
  }
  if (reader.malformed()) return nonsense();
  return false;
}

Result<Verdict> NetlinkSocket::ask(Bytes request, uint32_t sequence,
                                   const std::function<void(const GenericMessage&)>& answer) {
  sockaddr_nl kernel = {};
  kernel.nl_family = AF_NETLINK;
  const ssize_t n = sendto(fd_.get(), request.data(), request.size(), 0,
                           reinterpret_cast<const sockaddr*>(&kernel), sizeof kernel);
  if (n < 0) return Status::from_errno(errno, "a netlink request can't be sent");
  Verdict verdict;
  while (true) {
    CSNAP_TRY_ASSIGN(const Received received, receive());
    if (received.lost)
      return Status(Code::IO_ERROR, "the kernel's netlink answer got lost (ENOBUFS)", ENOBUFS);
    CSNAP_TRY_ASSIGN(const bool done, digest(received.datagram, sequence, answer, verdict));
    if (done) return verdict;
  }
}

}  // namespace csnap::netlink
