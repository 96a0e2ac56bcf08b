// The addon's entry: NativeBinding of src/native.ts. Besides the volume calls it holds the few
// system calls that Node lacks and the server needs.
#include <errno.h>
#include <fcntl.h>
#include <sys/socket.h>

#include "addon/gate_calls.h"
#include "addon/netlink_calls.h"
#include "addon/notify_socket.h"
#include "addon/plumbing.h"
#include "addon/reservation_calls.h"
#include "addon/store_calls.h"
#include "addon/volume_object.h"
#include "store/format.h"

namespace csnap::addon {
namespace {

Napi::Object error_codes(Napi::Env env) {
  Napi::Object codes = Napi::Object::New(env);
#define X(name, value, text) codes.Set(#name, Napi::Number::New(env, value));
#include "base/error_codes.def"
#undef X
  return codes;
}

Napi::Value set_error_class(const Napi::CallbackInfo& call) {
  if (!call[0].IsFunction()) {
    Napi::TypeError::New(call.Env(), "a class is expected").ThrowAsJavaScriptException();
    return call.Env().Undefined();
  }
  addon_data(call.Env()).error_class = Napi::Persistent(call[0].As<Napi::Function>());
  return call.Env().Undefined();
}

Napi::Value socket_pair(const Napi::CallbackInfo& call) {
  int fds[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0)
    return throw_status(call.Env(), Status::from_errno(errno, "a socket pair can't be made"));
  const Napi::Array pair = Napi::Array::New(call.Env(), 2);
  pair.Set(uint32_t{0}, Napi::Number::New(call.Env(), fds[0]));
  pair.Set(uint32_t{1}, Napi::Number::New(call.Env(), fds[1]));
  return pair;
}

Napi::Value duplicate(const Napi::CallbackInfo& call) {
  const int fd = call[0].IsNumber() ? call[0].As<Napi::Number>().Int32Value() : -1;
  const int copy = fcntl(fd, F_DUPFD_CLOEXEC, 3);
  if (copy < 0)
    return throw_status(call.Env(), Status::from_errno(errno, "a descriptor can't be duplicated"));
  return Napi::Number::New(call.Env(), copy);
}

Napi::Object init(Napi::Env env, Napi::Object exports) {
  auto data = std::make_unique<AddonData>();
  data->queue = JsQueue::make(env);
  data->volume_class = Napi::Persistent(VolumeObject::define(env));
  env.SetInstanceData<AddonData>(data.release());  // the environment deletes it

  const auto add = [&](const char* name, Napi::Value (*call)(const Napi::CallbackInfo&)) {
    exports.Set(name, Napi::Function::New(env, call, name));
  };
  exports.Set("errorCodes", error_codes(env));
  exports.Set("formatVersion", Napi::Number::New(env, format::kFormatVersion));
  add("setErrorClass", set_error_class);
  add("createStore", create_store_call);
  add("readStore", read_store_call);
  add("wipeStore", wipe_store_call);
  add("openVolume", open_volume_call);
  add("socketPair", socket_pair);
  add("duplicate", duplicate);
  add("notify", notify_call);
  add("storeDescriptor", store_descriptor_call);
  add_gate_calls(env, exports);
  add_netlink_calls(env, exports);
  add_reservation_calls(env, exports);
  return exports;
}

}  // namespace
}  // namespace csnap::addon

namespace {
Napi::Object init_module(Napi::Env env, Napi::Object exports) {
  return csnap::addon::init(env, exports);
}
}  // namespace
NODE_API_MODULE(csnap, init_module)
