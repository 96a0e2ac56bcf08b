// sd_notify(3) without libsystemd: one datagram to the service manager. Callers: addon.cc.
#pragma once

#include "addon/plumbing.h"

namespace csnap::addon {

Napi::Value notify_call(const Napi::CallbackInfo& call);
Napi::Value store_descriptor_call(const Napi::CallbackInfo& call);

}  // namespace csnap::addon
