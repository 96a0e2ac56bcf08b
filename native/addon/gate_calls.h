// Gates of server terms (base/gate.h) by number: the thread that serves a volume makes one and
// opens the volume with it, a worker that loads the same addon extends it from its own event loop,
// however busy the first one is.
//
// Invariants
//  GC1  Numbers are the process's, whichever environment asks; none is used twice.
//  GC2  A gate that is shut is forgotten: what comes later for its number is ignored (GA1).
#pragma once

#include "addon/plumbing.h"
#include "base/gate.h"

namespace csnap::addon {

void add_gate_calls(Napi::Env env, Napi::Object exports);

// Null where the value is no number of a gate: a TypeError is pending. One that is shut already is
// found as such.
std::shared_ptr<Gate> gate_argument(Napi::Env env, const Napi::Value& value);

}  // namespace csnap::addon
