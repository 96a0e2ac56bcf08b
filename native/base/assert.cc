#include "base/assert.h"

#include <cstdio>
#include <cstdlib>

namespace csnap {

void assert_failed(const char* rule, const char* condition, const char* file, int line) {
  std::fprintf(stderr, "csnap: broken %s: %s at %s:%d\n", rule, condition, file, line);
  std::fflush(stderr);
  std::abort();
}

}  // namespace csnap
