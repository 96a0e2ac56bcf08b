// UUIDs (RFC 9562) of volumes, stores and snapshots.
#pragma once

#include <string>

#include "store/format.h"

namespace csnap {

struct Uuid {
  format::Uuid bytes{};
  bool operator==(const Uuid& other) const;
  bool is_nil() const;
  std::string to_text() const;  // 8-4-4-4-12 lower case
  static bool parse(const std::string& text, Uuid& out);
  static Uuid random();
};

}  // namespace csnap
