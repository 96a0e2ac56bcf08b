// Calls of NativeBinding that drive the kernel's nbd client (native/netlink). Callers: addon.cc.
//
// Invariants
//  N1  Descriptors that JS passes to an asynchronous call are duplicated before it returns: JS may
//      close its own at once.
//  N2  A listener of dead links lives until close(), or until its environment ends; dropping the
//      handle does not end it.
#pragma once

#include "addon/plumbing.h"

namespace csnap::addon {

// Sets all of them on the addon's exports.
void add_netlink_calls(Napi::Env env, Napi::Object exports);

}  // namespace csnap::addon
