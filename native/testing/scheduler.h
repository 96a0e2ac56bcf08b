// The single-stepping scheduler: actors are fibers on one real thread, and at every yield, block
// and device step the seed decides who goes on. Callers: simulation tests; the core through
// base/sync.h.
//
// Invariants
//  I1  Equal seed and equal bodies, equal run: nothing depends on addresses, clocks or other
//  threads. I2  Exactly one actor runs; it is changed only inside yield(), block(), join() and at
//  its end.
//      wake_one(), wake_all() and spawn() do not switch.
//  I3  Simulated time never goes back. It creeps with the steps, jumps to the earliest deadline
//  when
//      nobody can run, and now and then, by seed, also while somebody could: time-outs fire early.
//  I4  run() may be called inside an actor of another scheduler: a crash is explored to its end
//  while
//      the run that suffers it stands still.
//  I5  A run that can't end (deadlock, step limit) or is stopped is abandoned: run() returns,
//  stacks are
//      reused, and what the actors' frames own is lost.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/sync.h"
#include "testing/fiber.h"
#include "testing/rng.h"

namespace csnap {

class SimScheduler final : public Scheduler {
 public:
  struct Options {
    uint64_t step_limit = 5'000'000;
    uint32_t early_timeout_one_in = 64;   // steps; 0: never
    uint32_t spurious_wakeup_one_in = 0;  // steps; 0: never
    uint32_t step_us = 5;                 // simulated time of one step
  };
  enum class End { COMPLETED, DEADLOCK, STEP_LIMIT, STOPPED };
  struct Outcome {
    End end = End::COMPLETED;
    uint64_t step_count = 0;
    uint64_t now_ms = 0;
    uint64_t trace = 0;  // a hash of every choice made
    std::string report;  // unless COMPLETED: the cause and each actor's state, a line each
    bool ok() const { return end == End::COMPLETED; }
  };

  SimScheduler() = default;
  explicit SimScheduler(Options options) : options_(options) {}
  ~SimScheduler() override;

  // Runs `root` and all actors it spawns until every one has ended. May be called again and again.
  Outcome run(uint64_t seed, std::function<void()> root);
  // From inside an actor: ends the run here and now (I5). Never returns.
  [[noreturn]] void stop(std::string why);

  const std::string& current_name() const;
  uint64_t step_count() const { return step_count_; }
  uint64_t actor_count() const { return actors_.size(); }

  void yield() override;
  bool block(const void* key, uint64_t deadline_ms) override;
  void wake_one(const void* key) override;
  void wake_all(const void* key) override;
  void* spawn(const char* name, std::function<void()> body) override;
  void join(void* actor) override;
  uint64_t now_ms() override { return now_us_ / 1000; }

 private:
  struct Actor {
    SimScheduler* scheduler;
    uint64_t number;
    std::string name;
    std::function<void()> body;
    std::unique_ptr<Fiber> fiber;
    enum { RUNNABLE, BLOCKED, ENDED } state = RUNNABLE;
    const void* key = nullptr;
    uint64_t deadline_us = 0;  // kNever: none
    bool woken = false;
    int64_t priority = 0;
    uint64_t since_step = 0;
  };
  // How the next actor is chosen; drawn from the seed for each run, because each finds other
  // faults.
  enum class Policy {
    UNIFORM,   // any runnable one
    BURSTS,    // mostly the same one again
    PRIORITY,  // strictly by a random order that changes now and then: starves actors for long
  };

  static void actor_entry(void* argument);
  void begin(uint64_t seed);
  void forget_actors();
  void switch_away(bool ends);
  Actor* pick();
  Actor* choose();
  void expire_deadlines();
  void make_runnable(Actor* actor, bool woken);
  [[noreturn]] void abandon(End end, std::string&& why);
  std::string describe_actors() const;
  std::unique_ptr<Fiber> take_fiber();
  void give_back(std::unique_ptr<Fiber> fiber);

  Options options_;
  Rng rng_{0};
  Policy policy_ = Policy::UNIFORM;
  bool running_ = false;
  Fiber* home_ = nullptr;
  Actor* current_ = nullptr;
  std::unique_ptr<Fiber> ended_fiber_;  // still under the feet of the actor that ended
  std::vector<std::unique_ptr<Actor>> actors_;
  std::vector<Actor*> runnable_;  // without the current one
  std::vector<Actor*> blocked_;
  std::vector<std::unique_ptr<Fiber>> spare_fibers_;
  uint64_t now_us_ = 0;
  uint64_t next_deadline_us_ = 0;  // no later than the earliest deadline of a blocked actor
  uint64_t step_count_ = 0;
  uint64_t next_number_ = 0;
  int64_t lowest_priority_ = 0;
  Outcome outcome_;
};

}  // namespace csnap
