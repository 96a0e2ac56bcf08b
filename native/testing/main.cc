// The native test program: doctest's main, and the seed in its first line. Random tests take theirs
// from seed_from_environment() of rng.h.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <cstdio>
#include <cstdlib>

int main(int argument_count, char** arguments) {
  doctest::Context context(argument_count, arguments);
  const char* seed = std::getenv("CSNAP_SEED");
  std::printf("CSNAP_SEED=%s\n", seed != nullptr ? seed : "(not set: each test's own)");
  std::fflush(stdout);
  return context.run();
}
