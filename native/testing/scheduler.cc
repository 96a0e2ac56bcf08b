#include "testing/scheduler.h"

#include <algorithm>

#include "base/assert.h"

namespace csnap {

namespace {
constexpr uint64_t kNever = ~uint64_t{0};
constexpr uint64_t kStartUs = 1'000'000;  // deadline 0 means none, so time does not start there
constexpr size_t kSpareFiberLimit = 64;
}  // namespace

SimScheduler::~SimScheduler() { CSNAP_ASSERT(!running_); }

SimScheduler::Outcome SimScheduler::run(uint64_t seed, std::function<void()> root) {
  CSNAP_ASSERT(!running_);
  begin(seed);
  Fiber home;
  home_ = &home;
  Scheduler* const outer = current_scheduler;  // I4
  current_scheduler = this;
  spawn("root", std::move(root));
  current_ = pick();
  Fiber::switch_to(home, *current_->fiber, false);
  current_scheduler = outer;
  if (ended_fiber_) give_back(std::move(ended_fiber_));
  forget_actors();
  home_ = nullptr;
  current_ = nullptr;
  running_ = false;
  outcome_.step_count = step_count_;
  outcome_.now_ms = now_ms();
  return std::move(outcome_);
}

void SimScheduler::begin(uint64_t seed) {
  running_ = true;
  outcome_ = Outcome();
  rng_ = Rng(seed);
  const uint64_t draw = rng_.below(4);
  policy_ = draw == 0 ? Policy::PRIORITY : draw == 1 ? Policy::BURSTS : Policy::UNIFORM;
  now_us_ = kStartUs;
  next_deadline_us_ = kNever;
  step_count_ = 0;
  next_number_ = 0;
  lowest_priority_ = 0;
}

void SimScheduler::forget_actors() {
  runnable_.clear();
  blocked_.clear();
  for (auto& actor : actors_) {
    if (actor->fiber) give_back(std::move(actor->fiber));
  }
  actors_.clear();
}

void SimScheduler::stop(std::string why) { abandon(End::STOPPED, std::move(why)); }

void SimScheduler::abandon(End end, std::string&& why) {
  outcome_.end = end;
  // Taken over, because nothing on this stack will be destroyed (I5).
  outcome_.report = std::move(why);
  outcome_.report += " after " + std::to_string(step_count_) + " steps\n" + describe_actors();
  // The fiber stays with its actor and is taken back by forget_actors().
  Fiber::switch_to(*current_->fiber, *home_, true);
  __builtin_unreachable();
}

const std::string& SimScheduler::current_name() const {
  CSNAP_ASSERT(current_ != nullptr);
  return current_->name;
}

void SimScheduler::yield() {
  current_->state = Actor::RUNNABLE;
  current_->since_step = step_count_;
  runnable_.push_back(current_);
  switch_away(false);
}

bool SimScheduler::block(const void* key, uint64_t deadline_ms) {
  Actor* const self = current_;
  self->state = Actor::BLOCKED;
  self->since_step = step_count_;
  self->key = key;
  self->deadline_us =
      deadline_ms == 0 || deadline_ms >= kNever / 1000 ? kNever : deadline_ms * 1000;
  next_deadline_us_ = std::min(next_deadline_us_, self->deadline_us);
  blocked_.push_back(self);
  switch_away(false);
  return self->woken;
}

void SimScheduler::make_runnable(Actor* actor, bool woken) {
  actor->state = Actor::RUNNABLE;
  actor->woken = woken;
  actor->since_step = step_count_;
  runnable_.push_back(actor);
}

void SimScheduler::wake_one(const void* key) {
  size_t count = 0;
  for (const Actor* actor : blocked_) count += actor->key == key;
  if (count == 0) return;
  // Nothing promises an order among those who wait.
  size_t skip = count == 1 ? 0 : rng_.below(count);
  const auto chosen = std::find_if(blocked_.begin(), blocked_.end(), [&](const Actor* actor) {
    return actor->key == key && skip-- == 0;
  });
  make_runnable(*chosen, true);
  blocked_.erase(chosen);
}

void SimScheduler::wake_all(const void* key) {
  std::erase_if(blocked_, [&](Actor* actor) {
    if (actor->key != key) return false;
    make_runnable(actor, true);
    return true;
  });
}

void* SimScheduler::spawn(const char* name, std::function<void()> body) {
  auto actor = std::make_unique<Actor>();
  actor->scheduler = this;
  actor->number = next_number_++;
  actor->name = name;
  actor->body = std::move(body);
  actor->priority = static_cast<int64_t>(rng_.below(1 << 20));
  actor->since_step = step_count_;
  actor->fiber = take_fiber();
  actor->fiber->prepare(&SimScheduler::actor_entry, actor.get());
  runnable_.push_back(actor.get());
  actors_.push_back(std::move(actor));
  return actors_.back().get();
}

void SimScheduler::actor_entry(void* argument) {
  auto* self = static_cast<Actor*>(argument);
  SimScheduler* const scheduler = self->scheduler;
  if (scheduler->ended_fiber_) scheduler->give_back(std::move(scheduler->ended_fiber_));
  self->body();
  self->body = nullptr;  // its captures end with the actor, as with a real thread
  self->state = Actor::ENDED;
  scheduler->wake_all(self);
  scheduler->switch_away(true);
}

void SimScheduler::join(void* token) {
  auto* actor = static_cast<Actor*>(token);
  yield();
  while (actor->state != Actor::ENDED) block(actor, 0);
  std::erase_if(actors_, [&](const auto& entry) { return entry.get() == actor; });
}

void SimScheduler::switch_away(bool ends) {
  Actor* const from = current_;
  Actor* const to = pick();
  if (to == from) return;  // chosen again
  if (ends) ended_fiber_ = std::move(from->fiber);
  Fiber& own = ends ? *ended_fiber_ : *from->fiber;
  if (to == nullptr) Fiber::switch_to(own, *home_, true);  // the last one
  current_ = to;
  Fiber::switch_to(own, *to->fiber, ends);
  if (ended_fiber_) give_back(std::move(ended_fiber_));
}

SimScheduler::Actor* SimScheduler::pick() {
  if (++step_count_ > options_.step_limit) abandon(End::STEP_LIMIT, "no end");
  now_us_ += options_.step_us;
  if (next_deadline_us_ != kNever && rng_.one_in(options_.early_timeout_one_in))
    now_us_ = std::max(now_us_, next_deadline_us_);
  if (next_deadline_us_ <= now_us_) expire_deadlines();
  if (!blocked_.empty() && rng_.one_in(options_.spurious_wakeup_one_in)) {
    const auto chosen = blocked_.begin() + static_cast<ptrdiff_t>(rng_.below(blocked_.size()));
    make_runnable(*chosen, true);
    blocked_.erase(chosen);
  }
  while (runnable_.empty()) {
    if (blocked_.empty()) return nullptr;
    if (next_deadline_us_ == kNever) abandon(End::DEADLOCK, "deadlock: nobody can go on");
    now_us_ = std::max(now_us_, next_deadline_us_);
    expire_deadlines();
  }
  Actor* const chosen = choose();
  outcome_.trace = mix64(outcome_.trace ^ chosen->number);
  return chosen;
}

SimScheduler::Actor* SimScheduler::choose() {
  auto chosen = runnable_.begin();
  switch (policy_) {
    case Policy::BURSTS: {
      const auto same = std::find(runnable_.begin(), runnable_.end(), current_);
      if (same != runnable_.end() && !rng_.one_in(16)) {
        chosen = same;
        break;
      }
      [[fallthrough]];
    }
    case Policy::UNIFORM:
      chosen += static_cast<ptrdiff_t>(rng_.below(runnable_.size()));
      break;
    case Policy::PRIORITY:
      chosen = std::max_element(
          runnable_.begin(), runnable_.end(),
          [](const Actor* left, const Actor* right) { return left->priority < right->priority; });
      // Also what lets those who spin for another actor come to an end.
      if (rng_.one_in(64)) (*chosen)->priority = --lowest_priority_;
      break;
  }
  Actor* const actor = *chosen;
  *chosen = runnable_.back();
  runnable_.pop_back();
  return actor;
}

void SimScheduler::expire_deadlines() {
  next_deadline_us_ = kNever;
  std::erase_if(blocked_, [&](Actor* actor) {
    if (actor->deadline_us > now_us_) {
      next_deadline_us_ = std::min(next_deadline_us_, actor->deadline_us);
      return false;
    }
    make_runnable(actor, false);
    return true;
  });
}

std::string SimScheduler::describe_actors() const {
  // Objects are numbered in the order met: addresses would make equal runs look different.
  std::vector<const void*> keys;
  std::string text;
  for (const auto& actor : actors_) {
    if (actor->state == Actor::ENDED) continue;
    text += "  " + actor->name + " (actor " + std::to_string(actor->number) + "): ";
    if (actor.get() == current_ && actor->state != Actor::BLOCKED) {
      text += "running";
    } else if (actor->state == Actor::RUNNABLE) {
      text += "can run";
    } else {
      const auto joined = std::find_if(actors_.begin(), actors_.end(), [&](const auto& other) {
        return other.get() == actor->key;
      });
      if (joined != actors_.end()) {
        text += "waits for the end of " + (*joined)->name;
      } else {
        auto known = std::find(keys.begin(), keys.end(), actor->key);
        if (known == keys.end()) known = keys.insert(keys.end(), actor->key);
        text += "waits for object " + std::to_string(known - keys.begin() + 1);
      }
      if (actor->deadline_us != kNever)
        text += " until " + std::to_string(actor->deadline_us / 1000) + " ms";
    }
    text += " since step " + std::to_string(actor->since_step) + "\n";
  }
  return text;
}

std::unique_ptr<Fiber> SimScheduler::take_fiber() {
  if (spare_fibers_.empty()) return std::make_unique<Fiber>();
  auto fiber = std::move(spare_fibers_.back());
  spare_fibers_.pop_back();
  return fiber;
}

void SimScheduler::give_back(std::unique_ptr<Fiber> fiber) {
  fiber->retire();
  if (spare_fibers_.size() < kSpareFiberLimit) spare_fibers_.push_back(std::move(fiber));
}

}  // namespace csnap
