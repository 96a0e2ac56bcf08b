#include "nbd/connection_set.h"

namespace csnap::nbd {

ConnectionSet::ConnectionSet(Volume& volume, Connection::Callbacks callbacks, uint64_t budget_bytes,
                             uint64_t stall_ms)
    : volume_(volume), callbacks_(std::move(callbacks)), budget_(budget_bytes, stall_ms) {}

ConnectionSet::~ConnectionSet() { drain_all(0); }

Result<uint64_t> ConnectionSet::serve(ConnectionOptions options) {
  reap();
  MutexLock lock(mutex_);
  if (draining_) return Status(Code::SHUTTING_DOWN, "the volume is being closed");
  const uint64_t id = next_id_++;
  Connection::Callbacks callbacks;
  callbacks.problem = callbacks_.problem;
  callbacks.closed = [this](uint64_t closed_id, const std::string& reason) {
    connection_closed(closed_id, reason);
  };
  auto connection =
      std::make_unique<Connection>(id, volume_, budget_, std::move(callbacks), std::move(options));
  CSNAP_TRY(connection->start());
  connections_.emplace(id, std::move(connection));
  return id;
}

// The last thing that a connection's thread does, but for returning. Who hears of the end finds the
// connection in no list any more; the set itself waits for the thread, so it outlives the call.
void ConnectionSet::connection_closed(uint64_t id, const std::string& reason) {
  {
    MutexLock lock(mutex_);
    ended_.push_back(id);
    ended_cond_.notify_all();
  }
  callbacks_.closed(id, reason);
}

std::vector<std::unique_ptr<Connection>> ConnectionSet::reap_locked() {
  std::vector<std::unique_ptr<Connection>> gone;
  for (const uint64_t id : ended_) {
    auto found = connections_.find(id);
    CSNAP_ASSERT(found != connections_.end());
    gone.push_back(std::move(found->second));
    connections_.erase(found);
  }
  ended_.clear();
  return gone;
}

void ConnectionSet::reap() {
  std::vector<std::unique_ptr<Connection>> gone;
  MutexLock lock(mutex_);
  gone = reap_locked();
  lock.unlock();
}

std::vector<ConnectionStats> ConnectionSet::list() {
  reap();
  MutexLock lock(mutex_);
  std::vector<ConnectionStats> all;
  for (const auto& [id, connection] : connections_) all.push_back(connection->stats());
  return all;
}

void ConnectionSet::drain(uint64_t id) {
  MutexLock lock(mutex_);
  if (auto found = connections_.find(id); found != connections_.end()) found->second->drain();
}

void ConnectionSet::cut(uint64_t id, const std::string& reason) {
  MutexLock lock(mutex_);
  if (auto found = connections_.find(id); found != connections_.end()) found->second->cut(reason);
}

void ConnectionSet::drain_all(uint64_t timeout_ms) {
  MutexLock lock(mutex_);
  draining_ = true;
  for (const auto& [id, connection] : connections_) connection->drain();
  const uint64_t deadline = monotonic_ms() + timeout_ms;
  while (ended_.size() < connections_.size()) {
    const uint64_t now = monotonic_ms();
    if (now >= deadline) break;
    ended_cond_.wait_for(lock, deadline - now);
  }
  for (const auto& [id, connection] : connections_) connection->cut("the server stops");
  while (ended_.size() < connections_.size()) ended_cond_.wait(lock);
  std::vector<std::unique_ptr<Connection>> gone = reap_locked();
  lock.unlock();
}

}  // namespace csnap::nbd
