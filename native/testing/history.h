// What clients did to a volume and what they were told, and which contents of origin and snapshots
// that allows, after a crash too. Callers: workload.h, which fills it, crash_explorer.h and tests,
// which judge by it.
//
// Every write fills its sectors with its own number (its token), so that each sector read back
// names the operation it comes from. Token 0 is zeros: of a zeroing, a trim, or never written.
//
// Invariants
//  I1  Only what a client can know counts: an operation begins when it is submitted and is over
//  when
//      its reply came (or the server died); two that overlap in time may take effect in any order.
//  I2  Judging changes nothing.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "volume/volume.h"

namespace csnap {

using Tick = uint64_t;
using Token = uint32_t;
using Tokens = std::vector<Token>;  // by sector

constexpr Token kTorn = ~Token{0};  // what no operation ever wrote there

void fill_sector(Token token, uint64_t sector, uint8_t* bytes);
Token token_of_sector(const uint8_t* bytes, uint64_t sector);
// Whole sectors from `first_sector` on.
Tokens tokens_of(const std::vector<uint8_t>& bytes, uint64_t first_sector);

// What the crash that precedes a judgement may have taken.
enum class Loss {
  NONE,   // kill -9, or none at all: nothing acknowledged (W8)
  POWER,  // what no flush covered (W3)
};

struct SnapshotNote {
  std::string name;
  Uuid uuid;  // nil until creation returned, or recovery showed it
  Tick called = 0;
  Tick returned = 0;  // 0: not known to have been made
  bool failed = false;
  Tick delete_called = 0;
  Tick delete_returned = 0;
  bool dropped = false;                   // by the store-full policy, as an event said
  std::shared_ptr<const Tokens> content;  // once read in full

  bool must_exist() const { return returned != 0 && delete_called == 0 && !dropped; }
  bool must_be_gone() const { return failed || delete_returned != 0 || dropped; }
};

class History {
 public:
  // All sectors hold `initial` tokens, durably.
  explicit History(Tokens initial) : initial_(std::move(initial)), by_sector_(initial_.size()) {}

  uint64_t sector_count() const { return initial_.size(); }
  Tick now() const { return now_; }
  Tick tick() { return ++now_; }
  // Grows with everything that restricts what a crash may show.
  uint64_t promise_count() const { return promise_count_; }

  // -- origin; WRITE, WRITE_ZEROES and TRIM
  Token submitted(IoOp kind, uint64_t first_sector, uint64_t sector_count);
  void acknowledged(Token token, bool durable);
  // Failed: any part of it may be there.
  void refused(Token token);
  Tick flush_submitted() { return tick(); }
  void flush_acknowledged(Tick submitted);

  // -- snapshots
  size_t create_called(const std::string& name);
  void create_returned(size_t index, const Uuid& uuid);
  void create_failed(size_t index) { snapshots_[index].failed = true; }
  void delete_called(size_t index) { snapshots_[index].delete_called = tick(); }
  void delete_returned(size_t index);
  void was_dropped(const std::string& name);
  void content_read(size_t index, Tokens content);
  const std::vector<SnapshotNote>& snapshots() const { return snapshots_; }
  std::vector<SnapshotNote>& snapshots() { return snapshots_; }

  // -- the read-write hold; one change at a time. `to` nil: it is being ended.
  bool hold_changing() const { return hold_wanted_.has_value(); }
  const Uuid& hold() const { return hold_; }
  void hold_called(const Uuid& to) { hold_wanted_ = to; }
  void hold_returned();
  void hold_refused() { hold_wanted_.reset(); }  // nothing was done

  // The volume has said that it stopped (W9): whatever is acknowledged from now on is wrong.
  void stopped() { stopped_ = true; }
  // Empty, or what was.
  const std::string& acknowledged_after_stop() const { return acknowledged_after_stop_; }

  // -- judging: empty, or what is wrong
  std::string judge_origin(const Tokens& now, Loss loss) const;
  // A read of the origin that was submitted at `submitted` and has just returned.
  std::string judge_read(uint64_t first_sector, const Tokens& seen, Tick submitted) const;
  // An acknowledged change is there, one under way is there or is not.
  std::string judge_hold(const Uuid& found) const;
  // W7, and W6 where the content was read before.
  std::string judge_snapshot(const SnapshotNote& note, const Tokens& content) const;

  // The server is gone and came back with `origin_now` and `hold_now`: what was under way is over.
  // `loss` says whether what is there now is durable (it is, after power loss).
  void recovered(const Tokens& origin_now, const Uuid& hold_now, Loss loss);

 private:
  static constexpr Tick kUnderWay = ~Tick{0};
  struct Op {
    IoOp kind;
    uint64_t first_sector;
    uint64_t sector_count;
    Tick submitted;
    Tick over = kUnderWay;
    bool acknowledged = false;
    bool durable = false;   // acknowledged with FUA, or found after power loss
    bool observed = false;  // not an operation: what was there after a recovery
  };
  struct Version {
    uint32_t op;
    Token token;
  };

  void promised(const char* what);
  bool kept(const Op& op, Loss loss) const;
  // Submit time of the youngest operation on the sector that `counts`; 0: none.
  template <typename Counts>
  Tick barrier(uint64_t sector, Counts counts) const;
  // Whether some operation submitted before `until` and not over before `barrier` wrote `token`.
  bool possible(uint64_t sector, Token token, Tick barrier, Tick until) const;
  std::string describe(uint64_t sector, Token token) const;

  Tokens initial_;
  std::vector<Op> ops_;
  std::vector<std::vector<Version>> by_sector_;
  std::vector<SnapshotNote> snapshots_;
  Uuid hold_;
  std::optional<Uuid> hold_wanted_;
  Tick now_ = 0;
  Tick flushed_before_ = 0;  // acknowledged before this: durable (W3)
  uint64_t promise_count_ = 0;
  bool stopped_ = false;
  std::string acknowledged_after_stop_;
};

}  // namespace csnap
