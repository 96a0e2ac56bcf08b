// All NBD connections of one volume: starts them, finds them by id, ends them together. Caller: the
// addon's volume object; tests.
//
// Invariants
//  S1  Every connection started is joined before the set is gone.
//  S2  `closed` is called once for each, after nothing of it is under way at the volume.
#pragma once

#include <map>
#include <memory>
#include <vector>

#include "nbd/connection.h"

namespace csnap::nbd {

class ConnectionSet {
 public:
  static constexpr uint64_t kBudgetBytes = uint64_t{512} << 20;
  static constexpr uint64_t kDrainMs = 10000;

  // `volume` outlives the set. The callbacks come from connection threads.
  ConnectionSet(Volume& volume, Connection::Callbacks callbacks,
                uint64_t budget_bytes = kBudgetBytes, uint64_t stall_ms = PayloadBudget::kStallMs);
  // Cuts and joins what is left.
  ~ConnectionSet();

  // Starts transmission; returns the connection's id. Errors: SHUTTING_DOWN after drain_all(),
  // IO_ERROR.
  Result<uint64_t> serve(ConnectionOptions options);
  std::vector<ConnectionStats> list();
  // Unknown ids (ended meanwhile) are ignored.
  void drain(uint64_t id);
  void cut(uint64_t id, const std::string& reason);
  // Refuses new connections, drains all, cuts after `timeout_ms` what has not ended, and waits
  // until the last one has.
  void drain_all(uint64_t timeout_ms);

 private:
  using Map = std::map<uint64_t, std::unique_ptr<Connection>>;

  void connection_closed(uint64_t id, const std::string& reason);
  // Takes ended connections out; the caller lets go of them without the mutex.
  std::vector<std::unique_ptr<Connection>> reap_locked();
  void reap();

  Volume& volume_;
  const Connection::Callbacks callbacks_;
  PayloadBudget budget_;
  Mutex mutex_;
  CondVar ended_cond_;
  uint64_t next_id_ = 1;
  bool draining_ = false;
  Map connections_;
  std::vector<uint64_t> ended_;  // closed, not joined yet
};

}  // namespace csnap::nbd
