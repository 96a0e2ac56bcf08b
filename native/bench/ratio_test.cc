#include "bench/ratio.h"

#include <doctest/doctest.h>

#include <cmath>
#include <numeric>

namespace csnap::bench {

TEST_CASE("ratio: pairs of the same round, not of the same rank") {
  CHECK(ratio_of({10, 20, 40}, {5, 10, 10}).median == 2);
  CHECK(ratio_of({40, 10, 20}, {5, 10, 10}).median == 2);
  CHECK(ratio_of({1, 3}, {1, 1}).median == 2);
}

TEST_CASE("ratio: the sign test's interval, the 4th of 15 from either end, none below six rounds") {
  std::vector<double> rates(15);
  std::iota(rates.begin(), rates.end(), 1);
  const Ratio fifteen = ratio_of(rates, std::vector<double>(15, 1));
  CHECK(fifteen.median == 8);
  CHECK(fifteen.low == 4);
  CHECK(fifteen.high == 12);
  rates.resize(6);
  CHECK(ratio_of(rates, std::vector<double>(6, 1)).low == 1);
  CHECK(ratio_of(rates, std::vector<double>(6, 1)).high == 6);
  rates.resize(5);
  CHECK(std::isnan(ratio_of(rates, std::vector<double>(5, 1)).low));
  CHECK(json_number(std::nan("")) == "null");
  CHECK(json_number(1.23456) == "1.235");
}

}  // namespace csnap::bench
