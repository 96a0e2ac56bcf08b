// Listens for devices whose socket died. Callers: addon/netlink_calls.
//
// Invariants
//  D1  A notice is a hint: the kernel sends one for each dying socket, and now and then none.
//  D2  Whatever may have been lost (the kernel's ENOBUFS, a message that makes no sense, the module
//      loaded anew) is said as kAllDevices: look at all of them.
//  D3  After stop() has returned the callback is not called any more.
#pragma once

#include <functional>
#include <memory>

#include "base/status.h"
#include "base/sync.h"
#include "io/unique_fd.h"
#include "netlink/exchange.h"

namespace csnap::netlink {

class DeadLinkListener {
 public:
  static constexpr int64_t kAllDevices = -1;
  // Called on the listener's thread; must not wait.
  using OnDead = std::function<void(int64_t index)>;

  // Errors as nbd_client's. A listener must be started before the device whose end it shall hear
  // of.
  static Result<std::unique_ptr<DeadLinkListener>> start(OnDead on_dead);
  ~DeadLinkListener();
  void stop();

 private:
  DeadLinkListener(NetlinkSocket socket, UniqueFd stop, uint16_t family, OnDead on_dead);
  void listen();
  void take(Bytes datagram);
  void module_loaded(const Message& message);

  NetlinkSocket socket_;
  UniqueFd stop_;  // eventfd
  uint16_t family_;
  OnDead on_dead_;
  Thread thread_;
};

}  // namespace csnap::netlink
