// Crashes at every device operation of random histories (design section 7): whatever a power loss
// or a kill leaves, the store opens, check is clean, and W1-W8 hold.
#include <doctest/doctest.h>

#include <algorithm>
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

// Below this a process can't be expected to meet every path.
constexpr uint64_t kEnoughPoints = 8000;

uint64_t points_wanted() {
  if (const char* given = std::getenv("CSNAP_CRASH_POINTS"))
    return std::strtoull(given, nullptr, 0);
  if (std::getenv("CSNAP_SANITIZED")) return 1000;
  const char* tier = std::getenv("CSNAP_TIER");
  const uint64_t all = tier && std::strcmp(tier, "full") == 0 ? 2'000'000 : 40'000;
  return std::max(all / shard().count, kEnoughPoints);
}

// What an exploration that never comes by proves nothing of.
const char* const kMustMeet[] = {
    "W1 dropped entries",
    "W6 incomplete snapshot deleted",
    "chunks reclaimed",
    "crash while csnap-checkpt writes superblock",
    "crash while csnap-checkpt writes store data",
    "crash while csnap-commit writes store data",
    "crash while csnap-commit writes journal",
    "crash while csnap-reclaim writes journal",
    "crash while root writes superblock at open",
    "crashes during recovery 1",
    "crashes during recovery 2",
    "durability id changed",
    "hold changed in a crash",
    "hold judged",
    "hold unchanged by a crash",
    "lives on after a crash",
    "opened with one damaged superblock",
    "records replayed",
    "snapshot dropped by the policy",
    "snapshot judged",
};

// Explores histories until `wanted` crash points were had. What was met; empty: it failed.
std::map<std::string, uint64_t> explore(uint64_t seed, uint64_t wanted, bool mode_sync) {
  const Shard part = shard();
  std::map<std::string, uint64_t> met;
  uint64_t points = 0, images = 0, histories = 0;
  for (uint64_t number = part.index; points < wanted; number += part.count) {
    Rng rng(mix64(seed + number));
    CrashShape shape = CrashShape::random(rng);
    if (mode_sync) {
      shape.durability = format::DurabilityMode::SYNC;
      shape.work.sync_mode = true;
    }
    // A history has some ten thousand operations: of most one in eight is enough, so that the
    // points are those of many.
    CrashBudget budget;
    if (!Rng(mix64(~seed ^ number)).one_in(4)) budget.image_one_in = 8;
    auto explorer = std::make_unique<CrashExplorer>(rng.next(), shape, budget);
    const bool survived = explorer->run();
    points += explorer->crash_points();
    images += explorer->images();
    histories++;
    for (const auto& [what, count] : explorer->met()) met[what] += count;
    if (!survived) {
      FAIL_CHECK("CSNAP_SEED=" << seed << " (history " << number << "): " << explorer->failure());
      explorer.release();  // its volumes were abandoned in the middle of things
      return {};
    }
  }
  std::string paths;
  for (const auto& [what, count] : met) paths += "\n  " + what + ": " + std::to_string(count);
  MESSAGE("CSNAP_SEED=" << seed << ": " << points << " crash points, " << images
                        << " volumes opened after a crash, " << histories
                        << " histories; met:" << paths);
  return met;
}

}  // namespace

TEST_CASE("crash exploration: histories alone, every reply and every read judged") {
  const uint64_t seed = seed_from_environment(0x1157);
  const char* tier = std::getenv("CSNAP_TIER");
  uint64_t histories = tier && std::strcmp(tier, "full") == 0 ? 10'000 : 2'000;
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
  const uint64_t wanted = points_wanted();
  std::map<std::string, uint64_t> met = explore(seed_from_environment(0xc4a5d), wanted, false);
  if (wanted < kEnoughPoints || met.empty()) return;
  for (const char* what : kMustMeet) CHECK_MESSAGE(met[what] > 0, "never met: " << what);
}

// W8: nothing acknowledged is lost with the host either.
TEST_CASE("crash exploration: mode sync, every device operation of random histories") {
  explore(seed_from_environment(0xc4a55), points_wanted() / 8, true);
}

}  // namespace csnap
