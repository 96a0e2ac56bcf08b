#include "netlink/dead_links.h"

#include <errno.h>
#include <linux/genetlink.h>
#include <linux/nbd-netlink.h>
#include <poll.h>
#include <sys/eventfd.h>

#include "netlink/nbd_client.h"
#include "netlink/refusal.h"

namespace csnap::netlink {
namespace {

// The controller's group has the controller's own id, in every kernel.
constexpr uint32_t kControllerGroup = GENL_ID_CTRL;

// Asks anew: the group of a module that is gone has a number that another may have by now.
Result<Family> join_dead_links(NetlinkSocket& socket) {
  CSNAP_TRY_ASSIGN(const Family family, refresh_family());
  if (family.dead_links_group == 0)
    return Status(Code::NOT_SUPPORTED,
                  "the kernel's nbd does not tell of dead links: kernel >= 5.10 is needed");
  CSNAP_TRY(socket.join_group(family.dead_links_group));
  return family;
}

}  // namespace

Result<std::unique_ptr<DeadLinkListener>> DeadLinkListener::start(OnDead on_dead) {
  CSNAP_TRY_ASSIGN(NetlinkSocket socket, NetlinkSocket::open());
  // First, so that no loading of the module is missed.
  CSNAP_TRY(socket.join_group(kControllerGroup));
  CSNAP_TRY_ASSIGN(const Family family, join_dead_links(socket));
  UniqueFd stop(eventfd(0, EFD_CLOEXEC));
  if (!stop) return Status::from_errno(errno, "an eventfd can't be made");
  std::unique_ptr<DeadLinkListener> listener(
      new DeadLinkListener(std::move(socket), std::move(stop), family.id, std::move(on_dead)));
  listener->thread_.start("dead-links", [raw = listener.get()] { raw->listen(); });
  return listener;
}

DeadLinkListener::DeadLinkListener(NetlinkSocket socket, UniqueFd stop, uint16_t family,
                                   OnDead on_dead)
    : socket_(std::move(socket)),
      stop_(std::move(stop)),
      family_(family),
      on_dead_(std::move(on_dead)) {}

DeadLinkListener::~DeadLinkListener() { stop(); }

void DeadLinkListener::stop() {
  if (!thread_.started()) return;
  CSNAP_ASSERT(eventfd_write(stop_.get(), 1) == 0);
  thread_.join();  // D3
}

void DeadLinkListener::listen() {
  while (true) {
    pollfd waits[] = {{stop_.get(), POLLIN, 0}, {socket_.fd(), POLLIN, 0}};
    const int ready = poll(waits, 2, -1);
    CSNAP_ASSERT(ready > 0 || errno == EINTR);
    if (ready <= 0) continue;
    if (waits[0].revents != 0) return;
    const Result<NetlinkSocket::Received> received = socket_.receive();
    if (received.ok() && !received.value().lost)
      take(received.value().datagram);
    else
      on_dead_(kAllDevices);  // D2
  }
}

void DeadLinkListener::take(Bytes datagram) {
  MessageReader reader(datagram);
  Message message;
  while (reader.next(message)) {
    if (message.type == GENL_ID_CTRL) {
      module_loaded(message);
      continue;
    }
    if (message.type != family_) continue;
    const auto generic = as_generic(message);
    if (generic && generic->command != NBD_CMD_LINK_DEAD) continue;
    const auto index = generic ? as_index(*generic) : std::nullopt;
    on_dead_(index ? int64_t{*index} : kAllDevices);  // D2
  }
  if (reader.malformed()) on_dead_(kAllDevices);
}

// With the module the group went away; the new one has other ids.
void DeadLinkListener::module_loaded(const Message& message) {
  const auto generic = as_generic(message);
  const auto family = generic ? as_family(*generic) : std::nullopt;
  if (!family || family->dead_links_group == 0) return;
  if (!socket_.join_group(family->dead_links_group).ok()) return;
  family_ = family->id;
  on_dead_(kAllDevices);
}

}  // namespace csnap::netlink
