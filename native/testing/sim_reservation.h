// A device that knows persistent reservations, as several hosts see it: what SPC-4 says of the
// commands that io/reservation.h uses, for the type "write exclusive, registrants only". Every
// command is a step of the scheduler. Callers: reservation_test.cc.
//
// Invariants
//  I1  A host is told by a unit attention, on its next command, that others have taken its
//      registration; the command itself is not carried out.
#pragma once

#include <map>
#include <optional>
#include <set>
#include <string>

#include "base/sync.h"
#include "io/reservation.h"

namespace csnap {

class SimReservedDevice {
 public:
  static constexpr int kCheckCondition = 0x02;
  static constexpr int kConflict = 0x18;

  // False: refused, as the caller is not registered and somebody holds a reservation.
  bool write(const std::string& host) const { return !holder_ || keys_.count(host) != 0; }
  const std::optional<std::string>& holder() const { return holder_; }
  bool is_registered(const std::string& host) const { return keys_.count(host) != 0; }

  class Port final : public ReservationPort {
   public:
    Port(SimReservedDevice& device, std::string host) : device_(device), host_(std::move(host)) {}

    const std::string& name() const override { return host_; }
    int register_key(uint64_t own_key, uint64_t new_key, bool ignore) override {
      return device_.command(host_, [&] {
        if (!ignore && own_key != device_.key_of(host_)) return kConflict;
        if (new_key != 0)
          device_.keys_[host_] = new_key;
        else
          device_.remove(host_);
        return 0;
      });
    }
    int reserve(uint64_t own_key) override {
      return device_.registrant(host_, own_key, [&] {
        if (device_.holder_ && *device_.holder_ != host_) return kConflict;
        device_.holder_ = host_;
        return 0;
      });
    }
    int preempt_and_abort(uint64_t own_key, uint64_t other_key) override {
      return device_.registrant(host_, own_key, [&] {
        std::set<std::string> removed;
        for (const auto& [host, key] : device_.keys_)
          if (key == other_key && host != host_) removed.insert(host);
        if (removed.empty()) return kConflict;
        const bool held = device_.holder_ && removed.count(*device_.holder_) != 0;
        for (const std::string& host : removed) {
          device_.remove(host);
          device_.attentions_.insert(host);
        }
        if (held) device_.holder_ = host_;
        return 0;
      });
    }
    int clear(uint64_t own_key) override {
      return device_.registrant(host_, own_key, [&] {
        device_.keys_.clear();
        device_.holder_.reset();
        return 0;
      });
    }

   private:
    SimReservedDevice& device_;
    const std::string host_;
  };

 private:
  template <typename Run>
  int command(const std::string& host, Run run) {
    yield_point();
    if (attentions_.erase(host) != 0) return kCheckCondition;  // I1
    return run();
  }
  template <typename Run>
  int registrant(const std::string& host, uint64_t own_key, Run run) {
    return command(host,
                   [&] { return own_key != 0 && own_key == key_of(host) ? run() : kConflict; });
  }
  uint64_t key_of(const std::string& host) const {
    const auto found = keys_.find(host);
    return found == keys_.end() ? 0 : found->second;
  }
  void remove(const std::string& host) {
    keys_.erase(host);
    if (holder_ == host) holder_.reset();
  }

  std::map<std::string, uint64_t> keys_;
  std::optional<std::string> holder_;
  std::set<std::string> attentions_;
};

}  // namespace csnap
