// NativeVolume of src/native.ts: one open volume as a JS object. Made by openVolume() only.
#pragma once

#include <memory>

#include "addon/open_volume.h"
#include "addon/plumbing.h"

namespace csnap::addon {

class VolumeObject : public Napi::ObjectWrap<VolumeObject> {
 public:
  static Napi::Function define(Napi::Env env);
  static Napi::Value wrap(Napi::Env env, std::shared_ptr<OpenVolume> volume);

  // Takes an External of std::shared_ptr<OpenVolume>, which JavaScript can't make.
  explicit VolumeObject(const Napi::CallbackInfo& call);

 private:
  Napi::Value info(const Napi::CallbackInfo& call);
  Napi::Value snapshots(const Napi::CallbackInfo& call);
  Napi::Value create_snapshot(const Napi::CallbackInfo& call);
  Napi::Value delete_snapshot(const Napi::CallbackInfo& call);
  Napi::Value update_snapshot(const Napi::CallbackInfo& call);
  Napi::Value update_settings(const Napi::CallbackInfo& call);
  Napi::Value decide_drop(const Napi::CallbackInfo& call);
  Napi::Value set_hold(const Napi::CallbackInfo& call);
  Napi::Value clear_hold(const Napi::CallbackInfo& call);
  Napi::Value freed_if_deleted(const Napi::CallbackInfo& call);
  Napi::Value check(const Napi::CallbackInfo& call);
  Napi::Value dump(const Napi::CallbackInfo& call);
  Napi::Value serve_connection(const Napi::CallbackInfo& call);
  Napi::Value connections(const Napi::CallbackInfo& call);
  Napi::Value drain_connection(const Napi::CallbackInfo& call);
  Napi::Value close_connection(const Napi::CallbackInfo& call);
  Napi::Value close(const Napi::CallbackInfo& call);

  std::shared_ptr<OpenVolume> volume_;
};

}  // namespace csnap::addon
