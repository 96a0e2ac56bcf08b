// Status and Result<T>: operating errors as values. A Status is a code of error_codes.def, an errno
// where one caused it, and one line for a person that names the object, the cause and the remedy.
// Cheap when ok: one pointer.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "base/assert.h"

namespace csnap {

enum class Code : int {
  OK = 0,
#define X(name, value, text) name = value,
#include "base/error_codes.def"
#undef X
};

// Stable name of a code, "IO_ERROR".
const char* code_name(Code code);
// The table's sentence for a code.
const char* code_text(Code code);

class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(Code code, std::string message, int error_number = 0);
  Status(const Status& other);
  Status& operator=(const Status& other);
  Status(Status&&) noexcept = default;
  Status& operator=(Status&&) noexcept = default;

  // IO_ERROR, NO_SPACE for ENOSPC, EDQUOT and EFBIG, NOT_SUPPORTED for EOPNOTSUPP, FENCED for EBADE
  // (the device is reserved, F8); text "<what>: <strerror>".
  static Status from_errno(int error_number, std::string what);

  bool ok() const { return rep_ == nullptr; }
  Code code() const { return rep_ ? rep_->code : Code::OK; }
  int error_number() const { return rep_ ? rep_->error_number : 0; }
  const std::string& message() const;
  std::string to_text() const;

 private:
  struct Rep {
    Code code;
    int error_number;
    std::string message;
  };
  std::unique_ptr<Rep> rep_;
};

template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : value_(std::move(value)) {}
  Result(Status status) : status_(std::move(status)) { CSNAP_ASSERT(!status_.ok()); }

  bool ok() const { return status_.ok(); }
  const Status& status() const { return status_; }
  Status take_status() { return std::move(status_); }
  T& value() {
    CSNAP_ASSERT(value_.has_value());
    return *value_;
  }
  const T& value() const {
    CSNAP_ASSERT(value_.has_value());
    return *value_;
  }
  T take() {
    CSNAP_ASSERT(value_.has_value());
    return std::move(*value_);
  }

 private:
  Status status_;
  std::optional<T> value_;
};

#define CSNAP_TRY(expression)                                                     \
  do {                                                                            \
    if (::csnap::Status status__ = (expression); !status__.ok()) return status__; \
  } while (0)

#define CSNAP_CONCAT_(a, b) a##b
#define CSNAP_CONCAT(a, b) CSNAP_CONCAT_(a, b)
// CSNAP_TRY_ASSIGN(auto x, f()): x becomes the value of a Result, or the function returns its
// status.
#define CSNAP_TRY_ASSIGN(target, expression)               \
  auto CSNAP_CONCAT(result__, __LINE__) = (expression);    \
  if (!CSNAP_CONCAT(result__, __LINE__).ok())              \
    return CSNAP_CONCAT(result__, __LINE__).take_status(); \
  target = CSNAP_CONCAT(result__, __LINE__).take()

}  // namespace csnap
