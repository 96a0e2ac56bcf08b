// Ratios of interleaved rounds, as test/bench/data/statistics.ts has them. Callers: the benchmarks
// here that compare.
#pragma once

#include <string>
#include <vector>

namespace csnap::bench {

// Of pairs of the same round. The ends are order statistics: the median lies between the k-th
// smallest and the k-th largest ratio with the probability that fair coins give between k and n - k
// heads; the largest k is taken that is sure to 95 %. NaN where none is, with fewer than six
// rounds.
struct Ratio {
  double median, low, high;
};
Ratio ratio_of(const std::vector<double>& ours, const std::vector<double>& theirs);

// Four digits; NaN, which JSON does not have, is null.
std::string json_number(double value);

}  // namespace csnap::bench
