#include "addon/store_calls.h"

#include "addon/gate_calls.h"
#include "addon/reservation_calls.h"
#include "addon/results.h"
#include "addon/store_setup.h"
#include "addon/volume_object.h"

namespace csnap::addon {
namespace {

// A path argument; false: a TypeError is pending.
bool path_argument(const Napi::CallbackInfo& call, std::string& out) {
  if (call[0].IsString()) {
    out = call[0].As<Napi::String>().Utf8Value();
    return true;
  }
  Napi::TypeError::New(call.Env(), "a path is expected").ThrowAsJavaScriptException();
  return false;
}

bool read_epoch(const Napi::Value& value, Epoch& out) {
  if (!value.IsBigInt()) return false;
  bool lossless = false;
  out = value.As<Napi::BigInt>().Uint64Value(&lossless);
  return lossless && out != 0;
}

// Runs what yields a superblock and settles with its summary.
Napi::Value run_summary(Napi::Env env, const char* name,
                        std::function<Result<SuperblockPtr>()> work) {
  auto out = std::make_shared<SuperblockPtr>();
  return run_async(
      env, name,
      [out, work = std::move(work)]() -> Status {
        CSNAP_TRY_ASSIGN(*out, work());
        return Status();
      },
      [out](Napi::Env js) { return store_summary(js, **out); });
}

// Events of a volume on their way to `onEvent`.
OpenVolume::Callbacks events_to(Napi::Env env, std::shared_ptr<JsCallback> callback) {
  if (!callback)
    return {[](const VolumeEvent&) {}, [](uint64_t, const std::string&) {},
            [](uint64_t, const std::string&) {}};
  const std::shared_ptr<JsQueue> queue = addon_data(env).queue;
  const auto of_connection = [queue, callback](const char* kind) {
    return [queue, callback, kind](uint64_t id, const std::string& message) {
      queue->post([callback, kind, id, message](Napi::Env js) {
        const Napi::HandleScope scope(js);
        callback->call(js, {connection_event(js, kind, id, message)});
      });
    };
  };
  OpenVolume::Callbacks callbacks;
  callbacks.event = [queue, callback](const VolumeEvent& event) {
    queue->post([callback, event](Napi::Env js) {
      const Napi::HandleScope scope(js);
      callback->call(js, {volume_event(js, event)});
    });
  };
  callbacks.request_failed = of_connection("request-failed");
  callbacks.connection_closed = of_connection("connection-closed");
  return callbacks;
}

}  // namespace

Napi::Value create_store_call(const Napi::CallbackInfo& call) {
  const Napi::Env env = call.Env();
  Options options(call[0]);
  MakeStoreOptions make;
  make.volume_name = options.text("volumeName");
  make.origin_path = options.text("originPath");
  make.store_path = options.text("storePath");
  make.store_bytes = options.number("storeBytes");
  make.chunk_bytes = options.number("chunkBytes");
  make.force = options.flag("force");
  const std::string on_full = options.text("onFull");
  make.progress = progress_to(env, JsCallback::make(options.value("onProgress")));
  if (!options.ok()) return env.Undefined();
  if (!parse_on_full(on_full, make.on_full))
    return throw_status(env, Status(Code::INVALID_ARGUMENT, "unknown on-full policy: " + on_full));
  return run_summary(env, "csnap-init", [make = std::move(make)] { return make_store(make); });
}

Napi::Value read_store_call(const Napi::CallbackInfo& call) {
  std::string path;
  if (!path_argument(call, path)) return call.Env().Undefined();
  return run_summary(call.Env(), "csnap-look", [path] { return look_at_store(path); });
}

Napi::Value wipe_store_call(const Napi::CallbackInfo& call) {
  std::string path;
  if (!path_argument(call, path)) return call.Env().Undefined();
  return run_async(
      call.Env(), "csnap-wipe", [path] { return wipe_store(path); },
      [](Napi::Env env) { return env.Undefined(); });
}

Napi::Value open_volume_call(const Napi::CallbackInfo& call) {
  const Napi::Env env = call.Env();
  Options options(call[0]);
  OpenVolumeOptions open;
  open.origin_path = options.text("originPath");
  open.store_path = options.text("storePath");
  open.look_only = options.flag("lookOnly");
  open.accept_origin = options.flag("acceptOrigin");
  open.accept_loss = options.flag("acceptLoss");
  open.direct = options.has("direct") && options.flag("direct");
  if (options.has("epoch") && !read_epoch(options.value("epoch"), open.epoch)) {
    Napi::TypeError::New(env, "epoch: a bigint from 1 to 2^64-1 is expected")
        .ThrowAsJavaScriptException();
    return env.Undefined();
  }
  if (options.has("gate")) {
    open.gate = gate_argument(env, options.value("gate"));
    if (!open.gate) return env.Undefined();
  }
  if (options.has("reservation") &&
      !reservation_argument(options.value("reservation"), open.reservation.emplace()))
    return env.Undefined();
  const std::string durability = options.text("durability");
  auto callback = JsCallback::make(options.value("onEvent"));
  if (!options.ok()) return env.Undefined();
  if (!parse_durability(durability, open.durability))
    return throw_status(env,
                        Status(Code::INVALID_ARGUMENT, "unknown durability mode: " + durability));
  auto out = std::make_shared<std::shared_ptr<OpenVolume>>();
  return run_async(
      env, "csnap-open",
      [out, open = std::move(open), callbacks = events_to(env, std::move(callback))]() -> Status {
        CSNAP_TRY_ASSIGN(*out, OpenVolume::open(open, callbacks));
        return Status();
      },
      [out](Napi::Env js) { return VolumeObject::wrap(js, std::move(*out)); });
}

}  // namespace csnap::addon
