#include "addon/open_volume.h"

#include "io/identity.h"
#include "io/reserved_device.h"

namespace csnap::addon {

Result<std::shared_ptr<OpenVolume>> OpenVolume::open(const OpenVolumeOptions& options,
                                                     Callbacks callbacks) {
  std::shared_ptr<OpenVolume> self(new OpenVolume());
  self->callbacks_ = std::move(callbacks);
  self->gate_ = options.gate;
  if (same_object(options.store_path, options.origin_path))
    return Status(Code::INVALID_ARGUMENT,
                  options.store_path + " is origin and store at once: check the volume's paths");
  FileDeviceOptions device;
  device.read_only = options.look_only;
  device.direct = options.direct;
  device.uncached_writes = true;
  CSNAP_TRY_ASSIGN(self->store_, FileDevice::open(options.store_path, device));
  device.uncached_writes = false;
  device.small_folios = true;
  CSNAP_TRY_ASSIGN(self->origin_, FileDevice::open(options.origin_path, device));
  if (options.reservation)  // V2
    for (const FileDevice* reserved : {self->store_.get(), self->origin_.get()})
      CSNAP_TRY(take_device(*reserved, *options.reservation, self->gate_.get()));

  VolumeOptions volume;
  volume.origin = self->origin_.get();
  volume.store = self->store_.get();
  CSNAP_TRY_ASSIGN(volume.identity, identity_of(*self->origin_));
  volume.durability = options.durability;
  volume.look_only = options.look_only;
  volume.accept_origin = options.accept_origin;
  volume.accept_loss = options.accept_loss;
  volume.epoch = options.epoch;
  volume.gate = self->gate_.get();
  CSNAP_TRY_ASSIGN(const std::string boot_id, read_boot_id());
  if (!Uuid::parse(boot_id, volume.boot_id))
    return Status(Code::IO_ERROR, "the kernel's boot id is no uuid: " + boot_id);
  volume.on_event = self->callbacks_.event;
  volume.index = IndexOptions::for_this_machine();
  volume.drop_decision_ms = kDropDecisionMs;
  volume.clock_ns = now_ns;
  volume.make_uuid = Uuid::random;
  volume.reread_identity = [origin = self->origin_.get(), former = volume.identity] {
    Result<OriginIdentity> found = identity_of(*origin);
    return found.ok() ? found.take() : former;
  };
  CSNAP_TRY_ASSIGN(self->volume_, Volume::open(std::move(volume)));
  self->connections_ = std::make_unique<nbd::ConnectionSet>(
      *self->volume_, nbd::Connection::Callbacks{self->callbacks_.request_failed,
                                                 self->callbacks_.connection_closed});
  return self;
}

// Without close(): as a crash would leave the volume.
OpenVolume::~OpenVolume() {
  if (connections_) connections_->drain_all(0);
}

Status OpenVolume::with(const std::function<Status(Volume&)>& call) {
  // Before the lock as well: begin_close() is called on the JS thread, which so never waits here.
  if (closing_) return Status(Code::SHUTTING_DOWN, "the volume is being closed");
  SharedLock lock(calls_);
  if (closing_ || !volume_) return Status(Code::SHUTTING_DOWN, "the volume is being closed");
  return call(*volume_);
}

Status OpenVolume::serve(const Uuid& snapshot, nbd::ConnectionOptions options, uint64_t& id) {
  return with([&](Volume& volume) -> Status {
    if (snapshot.is_nil()) {
      options.view = volume.open_origin();
    } else {
      CSNAP_TRY_ASSIGN(options.view, volume.open_snapshot(snapshot));
    }
    CSNAP_TRY_ASSIGN(id, connections_->serve(std::move(options)));
    return Status();
  });
}

bool OpenVolume::begin_close() { return !closing_.exchange(true); }

Status OpenVolume::close() {
  CSNAP_ASSERT(closing_);
  connections_->drain_all(nbd::ConnectionSet::kDrainMs);
  ExclusiveLock lock(calls_);
  const Status status = volume_->close();
  volume_.reset();
  origin_.reset();
  store_.reset();
  return status;
}

}  // namespace csnap::addon
