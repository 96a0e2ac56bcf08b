// The scheduler's promises (scheduler.h I1-I5) and the primitives of base/sync.h under it.
#include "testing/scheduler.h"

#include <doctest/doctest.h>

#include <chrono>
#include <set>

using namespace csnap;

namespace {

// Several actors that write their number where the seed lets them.
std::vector<int> order_of_steps(SimScheduler& scheduler, uint64_t seed, uint64_t* trace) {
  std::vector<int> order;
  const auto outcome = scheduler.run(seed, [&] {
    Thread threads[4];
    Mutex mutex;
    for (int i = 0; i < 4; i++) {
      threads[i].start("writer", [&, i] {
        for (int round = 0; round < 5; round++) {
          MutexLock lock(mutex);
          yield_point();
          order.push_back(i);
        }
      });
    }
    for (Thread& thread : threads) thread.join();
  });
  CHECK(outcome.ok());
  if (trace != nullptr) *trace = outcome.trace;
  return order;
}

}  // namespace

TEST_CASE("scheduler: the same seed gives the same run, another seed another") {
  SimScheduler scheduler;
  std::set<std::vector<int>> orders;
  for (uint64_t seed = 0; seed < 200; seed++) {
    uint64_t trace = 0;
    uint64_t trace_again = 0;
    const auto order = order_of_steps(scheduler, seed, &trace);
    SimScheduler fresh;
    CHECK(order == order_of_steps(fresh, seed, &trace_again));
    CHECK(trace == trace_again);
    CHECK(order.size() == 20);
    orders.insert(order);
  }
  CHECK(orders.size() > 100);
}

TEST_CASE("scheduler: a mutex excludes, and a race without one is found") {
  SimScheduler scheduler;
  int lost_updates = 0;
  for (uint64_t seed = 0; seed < 100; seed++) {
    int guarded = 0;
    int unguarded = 0;
    const auto outcome = scheduler.run(seed, [&] {
      Mutex mutex;
      Thread threads[3];
      for (Thread& thread : threads) {
        thread.start("adder", [&] {
          for (int i = 0; i < 10; i++) {
            {
              MutexLock lock(mutex);
              const int before = guarded;
              yield_point();
              guarded = before + 1;
            }
            const int before = unguarded;
            yield_point();
            unguarded = before + 1;
          }
        });
      }
      for (Thread& thread : threads) thread.join();
    });
    CHECK(outcome.ok());
    CHECK(guarded == 30);
    lost_updates += unguarded < 30;
  }
  CHECK(lost_updates > 40);
}

TEST_CASE("scheduler: a shared mutex lets readers overlap and nobody beside a writer") {
  SimScheduler scheduler;
  int overlaps = 0;
  for (uint64_t seed = 0; seed < 100; seed++) {
    const auto outcome = scheduler.run(seed, [&] {
      SharedMutex mutex;
      int readers = 0;
      int writers = 0;
      Thread threads[5];
      for (int i = 0; i < 5; i++) {
        threads[i].start("user", [&, i] {
          for (int round = 0; round < 5; round++) {
            if (i < 3) {
              SharedLock lock(mutex);
              readers++;
              overlaps += readers > 1;
              CHECK(writers == 0);
              yield_point();
              readers--;
            } else {
              ExclusiveLock lock(mutex);
              writers++;
              CHECK(writers == 1);
              CHECK(readers == 0);
              yield_point();
              writers--;
            }
          }
        });
      }
      for (Thread& thread : threads) thread.join();
    });
    CHECK(outcome.ok());
  }
  CHECK(overlaps > 0);
}

TEST_CASE("scheduler: a condition variable hands every item over once") {
  SimScheduler::Options options;
  SUBCASE("plain") {}
  SUBCASE("with spurious wake-ups") { options.spurious_wakeup_one_in = 8; }
  SimScheduler scheduler(options);
  for (uint64_t seed = 0; seed < 100; seed++) {
    std::vector<int> taken;
    const auto outcome = scheduler.run(seed, [&] {
      Mutex mutex;
      CondVar filled;
      std::vector<int> queue;
      bool done = false;
      Thread consumers[3];
      for (Thread& consumer : consumers) {
        consumer.start("consumer", [&] {
          MutexLock lock(mutex);
          for (;;) {
            while (queue.empty() && !done) filled.wait(lock);
            if (queue.empty()) return;
            taken.push_back(queue.back());
            queue.pop_back();
          }
        });
      }
      for (int i = 0; i < 20; i++) {
        MutexLock lock(mutex);
        queue.push_back(i);
        filled.notify_one();
      }
      {
        MutexLock lock(mutex);
        done = true;
        filled.notify_all();
      }
      for (Thread& consumer : consumers) consumer.join();
    });
    CHECK_MESSAGE(outcome.ok(), outcome.report);
    CHECK(std::set<int>(taken.begin(), taken.end()).size() == 20);
    CHECK(taken.size() == 20);
  }
}

TEST_CASE("scheduler: wait_for ends at its time and costs none") {
  SimScheduler scheduler;
  const auto outcome = scheduler.run(7, [] {
    Mutex mutex;
    CondVar never;
    MutexLock lock(mutex);
    const uint64_t start_ms = monotonic_ms();
    CHECK_FALSE(never.wait_for(lock, 3'600'000));
    const uint64_t waited_ms = monotonic_ms() - start_ms;
    CHECK(waited_ms >= 3'600'000);
    CHECK(waited_ms < 3'600'100);
  });
  CHECK(outcome.ok());
}

TEST_CASE("scheduler: wait_for tells a wake-up from a time-out, and time-outs fire early too") {
  SimScheduler scheduler;
  int woken = 0;
  int timed_out = 0;
  for (uint64_t seed = 0; seed < 300; seed++) {
    const auto outcome = scheduler.run(seed, [&] {
      Mutex mutex;
      CondVar ready;
      bool flag = false;
      Thread busy;
      busy.start("busy", [&] {
        for (int i = 0; i < 30; i++) yield_point();  // 150 us: far less than the time-out
        MutexLock lock(mutex);
        flag = true;
        ready.notify_one();
      });
      {
        MutexLock lock(mutex);
        const uint64_t start_ms = monotonic_ms();
        bool result = true;
        while (!flag && result) result = ready.wait_for(lock, 1000);
        if (result) {
          woken++;
          CHECK(flag);
        } else {
          timed_out++;
          CHECK(monotonic_ms() >= start_ms + 1000);
        }
      }
      busy.join();
    });
    CHECK(outcome.ok());
  }
  CHECK(woken > 50);
  CHECK(timed_out > 20);
}

TEST_CASE("scheduler: without early time-outs a busy run is never cut short") {
  SimScheduler::Options options;
  options.early_timeout_one_in = 0;
  SimScheduler scheduler(options);
  for (uint64_t seed = 0; seed < 50; seed++) {
    const auto outcome = scheduler.run(seed, [&] {
      Mutex mutex;
      CondVar ready;
      bool flag = false;
      Thread busy;
      busy.start("busy", [&] {
        for (int i = 0; i < 30; i++) yield_point();
        MutexLock lock(mutex);
        flag = true;
        ready.notify_one();
      });
      {
        MutexLock lock(mutex);
        while (!flag) CHECK(ready.wait_for(lock, 1000));
      }
      busy.join();
    });
    CHECK(outcome.ok());
  }
}

TEST_CASE("scheduler: a deadlock is reported with names") {
  SimScheduler scheduler;
  int found = 0;
  for (uint64_t seed = 0; seed < 50; seed++) {
    Mutex first;
    Mutex second;
    int finished = 0;
    const auto outcome = scheduler.run(seed, [&] {
      auto take = [&finished](Mutex& one, Mutex& other) {
        one.lock();
        yield_point();
        other.lock();
        other.unlock();
        one.unlock();
        finished++;
      };
      // Spawned bare, so that an abandoned run leaves no Thread object behind.
      current_scheduler->spawn("forward", [&, take] { take(first, second); });
      current_scheduler->spawn("backward", [&, take] { take(second, first); });
    });
    if (outcome.ok()) {
      CHECK(finished == 2);
      continue;
    }
    found++;
    CHECK(outcome.end == SimScheduler::End::DEADLOCK);
    CHECK(outcome.report.find("deadlock") == 0);
    CHECK(outcome.report.find("forward (actor 1): waits for object 1") != std::string::npos);
    CHECK(outcome.report.find("backward (actor 2): waits for object 2") != std::string::npos);
  }
  CHECK(found > 5);
  CHECK(found < 50);
  CHECK(current_scheduler == nullptr);
}

TEST_CASE("scheduler: a livelock ends at the step limit") {
  SimScheduler::Options options;
  options.step_limit = 1000;
  SimScheduler scheduler(options);
  const auto outcome = scheduler.run(1, [] {
    current_scheduler->spawn("spinner", [] {
      for (;;) yield_point();
    });
  });
  CHECK(outcome.end == SimScheduler::End::STEP_LIMIT);
  CHECK(outcome.step_count == 1001);
  CHECK(outcome.report.find("spinner") != std::string::npos);
  // The next run starts afresh.
  CHECK(scheduler.run(1, [] { yield_point(); }).ok());
}

TEST_CASE("scheduler: stop() abandons a run, and stacks are used again") {
  SimScheduler scheduler;
  for (uint64_t seed = 0; seed < 2000; seed++) {
    bool reached = false;
    const auto outcome = scheduler.run(seed, [&] {
      for (int i = 0; i < 3; i++) {
        current_scheduler->spawn("sleeper", [] {
          char frame[8192] = {};
          current_scheduler->block(frame, 0);
        });
      }
      yield_point();
      scheduler.stop("crash");
      reached = true;
    });
    CHECK(outcome.end == SimScheduler::End::STOPPED);
    CHECK(outcome.report.find("crash") == 0);
    CHECK_FALSE(reached);
  }
}

TEST_CASE("scheduler: a run inside an actor of another run") {
  SimScheduler outer;
  SimScheduler inner;
  std::vector<uint64_t> traces[2];
  for (auto& trace : traces) {
    const auto outcome = outer.run(5, [&] {
      Thread other;
      other.start("other", [] {
        for (int i = 0; i < 10; i++) yield_point();
      });
      for (uint64_t seed = 0; seed < 10; seed++) {
        CHECK(order_of_steps(inner, seed, &trace.emplace_back()).size() == 20);
        CHECK(current_scheduler == &outer);
        yield_point();
      }
      other.join();
    });
    CHECK(outcome.ok());
    trace.push_back(outcome.trace);
  }
  CHECK(traces[0] == traces[1]);
}

TEST_CASE("scheduler: hundreds of thousands of switches a second") {
  SimScheduler scheduler;
  const auto start = std::chrono::steady_clock::now();
  uint64_t step_count = 0;
  for (uint64_t seed = 0; seed < 20; seed++) {
    const auto outcome = scheduler.run(seed, [] {
      Thread threads[10];
      for (Thread& thread : threads) {
        thread.start("spinner", [] {
          for (int i = 0; i < 1000; i++) yield_point();
        });
      }
      for (Thread& thread : threads) thread.join();
    });
    CHECK(outcome.ok());
    step_count += outcome.step_count;
  }
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  MESSAGE(static_cast<uint64_t>(static_cast<double>(step_count) / seconds.count()),
          " steps per second");
  CHECK(step_count >= 200'000);
}
