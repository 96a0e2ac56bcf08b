#include "base/status.h"

#include <cerrno>
#include <cstring>

namespace csnap {

const char* code_name(Code code) {
  switch (code) {
    case Code::OK:
      return "OK";
#define X(name, value, text) \
  case Code::name:           \
    return #name;
#include "base/error_codes.def"
#undef X
  }
  return "UNKNOWN";
}

const char* code_text(Code code) {
  switch (code) {
    case Code::OK:
      return "done";
#define X(name, value, text) \
  case Code::name:           \
    return text;
#include "base/error_codes.def"
#undef X
  }
  return "unknown code";
}

Status::Status(Code code, std::string message, int error_number)
    : rep_(std::make_unique<Rep>(Rep{code, error_number, std::move(message)})) {
  CSNAP_ASSERT(code != Code::OK);
}

Status::Status(const Status& other)
    : rep_(other.rep_ ? std::make_unique<Rep>(*other.rep_) : nullptr) {}

Status& Status::operator=(const Status& other) {
  if (this != &other) rep_ = other.rep_ ? std::make_unique<Rep>(*other.rep_) : nullptr;
  return *this;
}

Status Status::from_errno(int error_number, std::string what) {
  Code code = Code::IO_ERROR;
  if (error_number == ENOSPC || error_number == EDQUOT || error_number == EFBIG)
    code = Code::NO_SPACE;
  if (error_number == EOPNOTSUPP) code = Code::NOT_SUPPORTED;
  // The block layer's word for a reservation conflict.
  if (error_number == EBADE)
    return Status(Code::FENCED, std::move(what) + " was refused: another host has reserved it",
                  error_number);
  return Status(code, std::move(what) + ": " + std::strerror(error_number), error_number);
}

const std::string& Status::message() const {
  static const std::string ok = "ok";
  return rep_ ? rep_->message : ok;
}

std::string Status::to_text() const {
  if (ok()) return "OK";
  return std::string(code_name(code())) + ": " + message();
}

}  // namespace csnap
