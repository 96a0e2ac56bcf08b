#include "addon/reservation_calls.h"

#include "io/reserved_device.h"

namespace csnap::addon {
namespace {

Napi::Value undefined(Napi::Env env) { return env.Undefined(); }

bool wrong(Napi::Env env, const char* text) {
  Napi::TypeError::New(env, text).ThrowAsJavaScriptException();
  return false;
}

bool read_key(const Napi::Value& value, uint64_t& out) {
  if (!value.IsBigInt()) return false;
  bool lossless = false;
  out = value.As<Napi::BigInt>().Uint64Value(&lossless);
  return lossless && out != 0;
}

bool paths_argument(const Napi::Value& value, std::vector<std::string>& out) {
  if (!value.IsArray()) return wrong(value.Env(), "an array of paths is expected");
  const auto array = value.As<Napi::Array>();
  for (uint32_t i = 0; i < array.Length(); i++) {
    const Napi::Value path = array[i];
    if (!path.IsString()) return wrong(value.Env(), "an array of paths is expected");
    out.push_back(path.As<Napi::String>().Utf8Value());
  }
  return true;
}

Napi::Value fence_devices_call(const Napi::CallbackInfo& call) {
  std::vector<std::string> paths;
  ReservationKeys keys;
  if (!paths_argument(call[0], paths) || !reservation_argument(call[1], keys))
    return call.Env().Undefined();
  return run_async(
      call.Env(), "csnap-fence", [paths, keys] { return fence_devices(paths, keys); }, undefined);
}

Napi::Value probe_reservation_call(const Napi::CallbackInfo& call) {
  if (!call[0].IsString()) {
    wrong(call.Env(), "a path is expected");
    return call.Env().Undefined();
  }
  return run_async(
      call.Env(), "csnap-probe-pr",
      [path = call[0].As<Napi::String>().Utf8Value()] { return probe_device_reservation(path); },
      undefined);
}

Napi::Value clear_reservations_call(const Napi::CallbackInfo& call) {
  std::vector<std::string> paths;
  uint64_t key = 0;
  if (!paths_argument(call[0], paths)) return call.Env().Undefined();
  if (!read_key(call[1], key)) {
    wrong(call.Env(), "a key is expected");
    return call.Env().Undefined();
  }
  return run_async(
      call.Env(), "csnap-clear-pr", [paths, key] { return clear_devices(paths, key); }, undefined);
}

}  // namespace

bool reservation_argument(const Napi::Value& value, ReservationKeys& out) {
  constexpr const char* kExpected = "{key: bigint, others: bigint[]} with keys above 0 is expected";
  if (!value.IsObject()) return wrong(value.Env(), kExpected);
  const auto object = value.As<Napi::Object>();
  const Napi::Value others = object.Get("others");
  if (!read_key(object.Get("key"), out.own) || !others.IsArray())
    return wrong(value.Env(), kExpected);
  const auto array = others.As<Napi::Array>();
  for (uint32_t i = 0; i < array.Length(); i++) {
    uint64_t key = 0;
    if (!read_key(array[i], key)) return wrong(value.Env(), kExpected);
    out.others.push_back(key);
  }
  return true;
}

void add_reservation_calls(Napi::Env env, Napi::Object exports) {
  const auto add = [&](const char* name, Napi::Value (*call)(const Napi::CallbackInfo&)) {
    exports.Set(name, Napi::Function::New(env, call, name));
  };
  add("fenceDevices", fence_devices_call);
  add("probeReservation", probe_reservation_call);
  add("clearReservations", clear_reservations_call);
}

}  // namespace csnap::addon
