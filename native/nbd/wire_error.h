// The one place where an operating error becomes what a client is told. Caller: Connection.
#pragma once

#include "base/status.h"
#include "nbd/wire.h"

namespace csnap::nbd {

struct WireError {
  Error error = Error::NONE;
  // The cause is the server's own and may be gone at the next server (stopping, fenced, failed):
  // the connection is dropped without an answer. Linux turns every error reply into an I/O error of
  // the application, but sends a request again when its connection was lost.
  bool drop = false;
};

WireError wire_error(const Status& status, Command command);

}  // namespace csnap::nbd
