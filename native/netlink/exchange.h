// A socket to the kernel's generic netlink: requests with their answers, and notices of a group.
// Callers: nbd_client, dead_links.
//
// Invariants
//  E1  Only datagrams that come from the kernel (port 0) are looked at; any process of this host
//  may
//      send to the socket.
//  E2  An answer is taken only if it carries the request's sequence number.
//  E3  One request has one verdict; nothing is ever sent twice by itself.
#pragma once

#include <functional>
#include <vector>

#include "base/status.h"
#include "io/unique_fd.h"
#include "netlink/message.h"

namespace csnap::netlink {

class NetlinkSocket {
 public:
  // NOT_SUPPORTED where the kernel or the sandbox has no generic netlink.
  static Result<NetlinkSocket> open();
  NetlinkSocket(NetlinkSocket&&) = default;

  int fd() const { return fd_.get(); }
  uint32_t next_sequence() { return ++sequence_; }

  // Sends and waits for the verdict. The kernel runs the command inside the send, for as long as it
  // likes. `answer` sees the messages that come before the verdict. An error here is one of the
  // transport; the kernel's refusal is in the verdict.
  Result<Verdict> ask(Bytes request, uint32_t sequence,
                      const std::function<void(const GenericMessage&)>& answer);

  Status join_group(uint32_t group);

  struct Received {
    Bytes datagram;     // empty: it did not come from the kernel (E1)
    bool lost = false;  // the kernel dropped datagrams (ENOBUFS)
  };
  // One datagram, which stays valid until the next call. Waits at most kAnswerSeconds.
  Result<Received> receive();

  // The answers are there when the send returns, so this only bounds what can not be.
  static constexpr int kAnswerSeconds = 10;

 private:
  explicit NetlinkSocket(UniqueFd fd);
  // True where it held the verdict.
  Result<bool> digest(Bytes datagram, uint32_t sequence,
                      const std::function<void(const GenericMessage&)>& answer, Verdict& verdict);

  UniqueFd fd_;
  uint32_t sequence_ = 0;
  std::vector<uint8_t> buffer_;
};

}  // namespace csnap::netlink
