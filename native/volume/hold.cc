// The read-write hold of an attachment: kept here, decided by the server (src/server/holds.ts).
// Callers: the addon, tests.
//
// Invariants
//  H1  A change is durable before its caller hears of it, and then survives restart and takeover.
//  H2  A hold is never replaced, only ended: two attachments can't both believe that they have it.
#include <cstring>

#include "volume/volume_impl.h"

namespace csnap {

HoldInfo VolumeImpl::hold_info() {
  const format::Hold& disk = store_->superblock().hold;
  HoldInfo info;
  std::memcpy(info.attachment.bytes, disk.attachment, sizeof disk.attachment);
  if (!info.held()) return info;
  info.host = field_text(disk.host);
  info.since_ns = disk.since_ns;
  return info;
}

HoldInfo VolumeImpl::hold() {
  MutexLock lock = store_->lock();
  return hold_info();
}

Status VolumeImpl::write_hold(Store::Transaction& transaction, const format::Hold& hold) {
  transaction.batch.add_struct(format::RecordKind::HOLD, hold);
  CSNAP_TRY(store_->commit(transaction));  // H1
  store_->apply_hold(hold);
  return still_granted();
}

// RESERVED, both ways: a full store must not keep a host from its disk, nor a hold from ending.
Result<HoldInfo> VolumeImpl::set_hold(const Uuid& attachment, const std::string& host) {
  format::Hold hold{};
  if (attachment.is_nil() || host.empty() || host.find('\0') != std::string::npos ||
      !set_field_text(hold.host, host))
    return Status(Code::INVALID_ARGUMENT,
                  "a hold needs the uuid of an attachment and a host's name of 1 to 63 bytes");
  Result<Store::Transaction> begun = store_->begin(Priority::RESERVED, sizeof hold, 0);
  if (!begun.ok()) return begun.take_status();
  Store::Transaction transaction = begun.take();
  const HoldInfo now = hold_info();
  if (now.attachment == attachment) return now;
  if (now.held())  // H2
    return Status(Code::BUSY, "attachment " + now.attachment.to_text() + " of host " + now.host +
                                  " holds the volume read-write");
  std::memcpy(hold.attachment, attachment.bytes, sizeof hold.attachment);
  hold.since_ns = options_.clock_ns();
  CSNAP_TRY(write_hold(transaction, hold));
  return hold_info();
}

Result<HoldInfo> VolumeImpl::clear_hold(const Uuid& attachment, bool force) {
  Result<Store::Transaction> begun = store_->begin(Priority::RESERVED, sizeof(format::Hold), 0);
  if (!begun.ok()) return begun.take_status();
  Store::Transaction transaction = begun.take();
  const HoldInfo now = hold_info();
  if (!now.held() || (!force && !(now.attachment == attachment))) return HoldInfo();
  CSNAP_TRY(write_hold(transaction, format::Hold{}));
  return now;
}

}  // namespace csnap
