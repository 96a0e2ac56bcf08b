#include "nbd/wire_error.h"

namespace csnap::nbd {

WireError wire_error(const Status& status, Command command) {
  const bool full = command == Command::WRITE || command == Command::WRITE_ZEROES;
  switch (status.code()) {
    case Code::OK:
      return {};
    case Code::NO_SPACE:
      return {Error::NOSPC};
    case Code::OUT_OF_RANGE:
      return {full ? Error::NOSPC : Error::INVAL};
    case Code::INVALID_ARGUMENT:
      return {Error::INVAL};
    case Code::READ_ONLY:
      return {Error::PERM};
    case Code::NOT_SUPPORTED:
      // Only FAST_ZERO may be answered so.
      return {command == Command::WRITE_ZEROES ? Error::NOTSUP : Error::INVAL};
    case Code::SHUTTING_DOWN:
    case Code::FENCED:
    case Code::FAILED:
      return {Error::NONE, true};
    default:
      return {Error::IO};
  }
}

}  // namespace csnap::nbd
