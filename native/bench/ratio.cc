#include "bench/ratio.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

namespace csnap::bench {
namespace {

// 0: no interval is sure enough.
size_t surest_rank(size_t n) {
  double below = 0;
  double ways = 1;
  for (size_t k = 0; 2 * k < n; k++) {
    below += std::ldexp(ways, -static_cast<int>(n));
    if (2 * below > 0.05) return k;
    ways = ways * static_cast<double>(n - k) / static_cast<double>(k + 1);
  }
  return 0;
}

}  // namespace

Ratio ratio_of(const std::vector<double>& ours, const std::vector<double>& theirs) {
  std::vector<double> ratios;
  for (size_t i = 0; i < ours.size(); i++) ratios.push_back(ours[i] / theirs[i]);
  std::sort(ratios.begin(), ratios.end());
  const size_t n = ratios.size();
  Ratio ratio{(ratios[(n - 1) / 2] + ratios[n / 2]) / 2, std::nan(""), std::nan("")};
  if (const size_t rank = surest_rank(n); rank > 0) {
    ratio.low = ratios[rank - 1];
    ratio.high = ratios[n - rank];
  }
  return ratio;
}

std::string json_number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.4g", value);
  return std::isnan(value) ? "null" : text;
}

}  // namespace csnap::bench
