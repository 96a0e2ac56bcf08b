// The tests' only source of chance: splitmix64, so that a seed is a whole run. Callers: everything
// in testing/ and every random test.
//
// Invariants
//  I1  The numbers depend on the seed alone: no clock, no address, no device of the machine.
#pragma once

#include <cstdint>
#include <cstdlib>

namespace csnap {

// Scatters a number over 64 bits; equal input, equal output.
constexpr uint64_t mix64(uint64_t value) {
  value += 0x9e3779b97f4a7c15;
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9;
  value = (value ^ (value >> 27)) * 0x94d049bb133111eb;
  return value ^ (value >> 31);
}

class Rng {
 public:
  explicit Rng(uint64_t seed) : state_(mix64(seed)) {}

  uint64_t next() {
    state_ += 0x9e3779b97f4a7c15;
    return mix64(state_);
  }
  // 0 <= result < bound; bound > 0. The bias of the remainder does not matter to a test.
  uint64_t below(uint64_t bound) { return next() % bound; }
  // first <= result <= last.
  uint64_t between(uint64_t first, uint64_t last) { return first + below(last - first + 1); }
  // True once in `count` calls on average; never when `count` is 0.
  bool one_in(uint64_t count) { return count != 0 && below(count) == 0; }
  bool coin() { return (next() & 1) != 0; }
  // A generator of its own, so that two users do not shift each other's numbers.
  Rng fork() { return Rng(next()); }

 private:
  uint64_t state_;
};

// CSNAP_SEED of the environment, which repeats a run that failed; else `otherwise`.
inline uint64_t seed_from_environment(uint64_t otherwise) {
  const char* text = std::getenv("CSNAP_SEED");
  return text != nullptr && *text != '\0' ? std::strtoull(text, nullptr, 0) : otherwise;
}

}  // namespace csnap
