// Invariant checks, on in every build. CSNAP_ASSERT(cond) for plain ones, CSNAP_RULE(W2, cond) for
// the numbered rules of the design. A broken invariant prints where and aborts: going on would put
// somebody's data at risk.
#pragma once

namespace csnap {

[[noreturn]] void assert_failed(const char* rule, const char* condition, const char* file,
                                int line);

}  // namespace csnap

#define CSNAP_ASSERT(cond)                                            \
  do {                                                                \
    if (!(cond)) [[unlikely]]                                         \
      ::csnap::assert_failed("invariant", #cond, __FILE__, __LINE__); \
  } while (0)

#define CSNAP_RULE(rule, cond)                                  \
  do {                                                          \
    if (!(cond)) [[unlikely]]                                   \
      ::csnap::assert_failed(#rule, #cond, __FILE__, __LINE__); \
  } while (0)
