// Calls of NativeBinding that need no open volume: making, reading, wiping a store, opening a
// volume.
#pragma once

#include "addon/plumbing.h"

namespace csnap::addon {

Napi::Value create_store_call(const Napi::CallbackInfo& call);
Napi::Value read_store_call(const Napi::CallbackInfo& call);
Napi::Value wipe_store_call(const Napi::CallbackInfo& call);
Napi::Value open_volume_call(const Napi::CallbackInfo& call);

}  // namespace csnap::addon
