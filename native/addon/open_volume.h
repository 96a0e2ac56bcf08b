// An open volume as the addon holds it: devices, volume, connections, events. Shared by the JS
// object and the calls that run on other threads; knows nothing of Node. Callers: volume_object.cc,
// store_calls.cc.
//
// Invariants
//  V1  Gate and devices outlive the volume, the volume outlives connections that use it.
//  V2  Devices are reserved while they are held exclusively (RV1) and before the volume is opened;
//      the reservation outlives it (RV5).
//  V3  close() runs once and waits for every call under way; calls that come later are refused.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "addon/store_setup.h"
#include "io/reservation.h"
#include "nbd/connection_set.h"

namespace csnap::addon {

struct OpenVolumeOptions {
  std::string origin_path;
  std::string store_path;
  format::DurabilityMode durability = format::DurabilityMode::FLUSH;
  bool look_only = false;
  bool accept_origin = false;
  bool accept_loss = false;
  bool direct = false;         // origin and store, FileDevice's FD4
  Epoch epoch = 0;             // granted by the broker; 0: the store's next one
  std::shared_ptr<Gate> gate;  // of the grant (F2); null: nothing bounds it
  // Store and origin are taken before anything is written (F8); absent: nobody reserves them.
  std::optional<ReservationKeys> reservation;
};

class OpenVolume {
 public:
  // From any thread; must not block.
  struct Callbacks {
    std::function<void(const VolumeEvent&)> event;
    std::function<void(uint64_t connection, const std::string& message)> request_failed;
    std::function<void(uint64_t connection, const std::string& reason)> connection_closed;
  };

  // How long the core waits for JavaScript to choose a snapshot to drop.
  static constexpr uint32_t kDropDecisionMs = 2000;

  // Errors: those of FileDevice::open(), take_device(), read_identity() and Volume::open().
  static Result<std::shared_ptr<OpenVolume>> open(const OpenVolumeOptions& options,
                                                  Callbacks callbacks);
  ~OpenVolume();

  // Runs `call` unless the volume is closed or being closed (SHUTTING_DOWN). Blocks as `call` does.
  Status with(const std::function<Status(Volume&)>& call);
  // Valid for the object's life; refuses new connections once close() has begun.
  nbd::ConnectionSet& connections() { return *connections_; }
  Status serve(const Uuid& snapshot, nbd::ConnectionOptions options, uint64_t& id);

  // From the moment begin_close() returns true, nothing new starts; false: it had begun before.
  bool begin_close();
  // Drains connections, closes volume and devices. After begin_close().
  Status close();

 private:
  OpenVolume() = default;

  Callbacks callbacks_;
  std::shared_ptr<Gate> gate_;
  std::unique_ptr<FileDevice> origin_;
  std::unique_ptr<FileDevice> store_;
  std::unique_ptr<Volume> volume_;
  std::unique_ptr<nbd::ConnectionSet> connections_;
  SharedMutex calls_;  // shared: a call is under way; exclusive: close() lets go of the volume
  std::atomic<bool> closing_{false};
};

}  // namespace csnap::addon
