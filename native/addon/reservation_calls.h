// Persistent reservations for an agent that fences and for commands that look or clear; and the
// argument that a server opens its volume with (io/reserved_device.h).
#pragma once

#include "addon/plumbing.h"
#include "io/reservation.h"

namespace csnap::addon {

void add_reservation_calls(Napi::Env env, Napi::Object exports);

// {key: bigint, others: bigint[]}. False: a TypeError is pending.
bool reservation_argument(const Napi::Value& value, ReservationKeys& out);

}  // namespace csnap::addon
