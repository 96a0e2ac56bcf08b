// Crashes at every device operation of random histories (design section 7): whatever a power loss
// or a kill leaves, the store opens, check is clean, and W1-W8 hold.
#include <doctest/doctest.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "testing/crash_explorer.h"

namespace csnap {
namespace {

struct Shard {
  uint64_t index = 0, count = 1;
};

// CSNAP_SHARD=i/n: this process takes every n-th history.
Shard shard() {
  Shard shard;
  const char* text = std::getenv("CSNAP_SHARD");
  if (!text) return shard;
  unsigned long index = 0, count = 0;
  if (std::sscanf(text, "%lu/%lu", &index, &count) == 2 && count > 0 && index < count)
    shard = {index, count};
  return shard;
}

uint64_t points_wanted() {
  const char* tier = std::getenv("CSNAP_TIER");
  uint64_t wanted = tier && std::strcmp(tier, "full") == 0 ? 2'000'000 : 20'000;
  if (const char* given = std::getenv("CSNAP_CRASH_POINTS"))
    wanted = std::strtoull(given, nullptr, 0);
  if (std::getenv("CSNAP_SANITIZED")) wanted /= 20;
  return wanted / shard().count;
}

}  // namespace

TEST_CASE("crash exploration: histories alone, every reply and every read judged") {
  const uint64_t seed = seed_from_environment(0x1157);
  const char* tier = std::getenv("CSNAP_TIER");
  uint64_t histories = tier && std::strcmp(tier, "full") == 0 ? 60'000 : 2'000;
  if (const char* given = std::getenv("CSNAP_HISTORIES"))
    histories = std::strtoull(given, nullptr, 0);
  if (std::getenv("CSNAP_SANITIZED")) histories /= 20;
  const Shard part = shard();
  std::map<std::string, uint64_t> met;
  for (uint64_t number = part.index; number < histories; number += part.count) {
    Rng rng(mix64(seed + number));
    const CrashShape shape = CrashShape::random(rng);
    CrashBudget budget;
    budget.image_one_in = 0;
    auto explorer = std::make_unique<CrashExplorer>(rng.next(), shape, budget);
    const bool right = explorer->run();
    for (const auto& [what, count] : explorer->met()) met[what] += count;
    if (!right) {
      FAIL_CHECK("CSNAP_SEED=" << seed << " (history " << number << "): " << explorer->failure());
      explorer.release();
      return;
    }
  }
  std::string paths;
  for (const auto& [what, count] : met) paths += "\n  " + what + ": " + std::to_string(count);
  MESSAGE("CSNAP_SEED=" << seed << ": " << histories << " histories; met:" << paths);
}

TEST_CASE("crash exploration: every device operation of random histories") {
  const uint64_t seed = seed_from_environment(0xc4a54);
  const uint64_t wanted = points_wanted();
  const Shard part = shard();
  std::map<std::string, uint64_t> met;
  uint64_t points = 0, images = 0, histories = 0;
  for (uint64_t number = part.index; points < wanted; number += part.count) {
    const uint64_t history_seed = mix64(seed + number);
    Rng rng(history_seed);
    const CrashShape shape = CrashShape::random(rng);
    auto explorer = std::make_unique<CrashExplorer>(rng.next(), shape, CrashBudget());
    const bool survived = explorer->run();
    points += explorer->crash_points();
    images += explorer->images();
    histories++;
    for (const auto& [what, count] : explorer->met()) met[what] += count;
    if (!survived) {
      FAIL_CHECK("CSNAP_SEED=" << seed << " (history " << number << "): " << explorer->failure());
      explorer.release();  // its volumes were abandoned in the middle of things
      return;
    }
  }
  std::string paths;
  for (const auto& [what, count] : met) paths += "\n  " + what + ": " + std::to_string(count);
  MESSAGE("CSNAP_SEED=" << seed << ": " << points << " crash points, " << images
                        << " volumes opened after a crash, " << histories
                        << " histories; met:" << paths);
}

}  // namespace csnap
