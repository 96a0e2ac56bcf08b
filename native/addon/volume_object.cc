#include "addon/volume_object.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include "addon/results.h"

namespace csnap::addon {
namespace {

using Call = Napi::CallbackInfo;

// A uuid argument; '' is nil. False: a TypeError is pending.
bool parse_uuid(Napi::Env env, const Napi::Value& value, Uuid& out) {
  out = Uuid();
  if (value.IsString()) {
    const std::string text = value.As<Napi::String>().Utf8Value();
    if (text.empty() || Uuid::parse(text, out)) return true;
  }
  Napi::TypeError::New(env, "a uuid is expected").ThrowAsJavaScriptException();
  return false;
}

// Runs on a thread of its own; the result appears in `out` before `result` sees it.
template <typename Out>
Napi::Value run_with(Napi::Env env, const char* name, const std::shared_ptr<OpenVolume>& volume,
                     std::function<Status(Volume&, Out&)> work,
                     std::function<Napi::Value(Napi::Env, const Out&)> result) {
  auto out = std::make_shared<Out>();
  return run_async(
      env, name,
      [volume, out, work = std::move(work)] {
        return volume->with([&](Volume& open) { return work(open, *out); });
      },
      [out, result = std::move(result)](Napi::Env js) { return result(js, *out); });
}

struct Nothing {};
Napi::Value undefined(Napi::Env env, const Nothing&) { return env.Undefined(); }

// Writes all; a pipe that is full is waited for, whatever mode its descriptor is in.
Status write_all(int fd, const std::string& text) {
  for (size_t done = 0; done < text.size();) {
    const ssize_t n = write(fd, text.data() + done, text.size() - done);
    if (n >= 0) {
      done += static_cast<size_t>(n);
    } else if (errno == EAGAIN) {
      pollfd ready = {fd, POLLOUT, 0};
      poll(&ready, 1, -1);
    } else if (errno != EINTR) {
      return Status::from_errno(errno, "the dump can't be written");
    }
  }
  return Status();
}

Status dump_to(Volume& volume, int fd) {
  constexpr size_t kBufferBytes = 64 * 1024;
  std::string buffer;
  Status written;
  CSNAP_TRY(volume.dump([&](const std::string& line) {
    buffer += line;
    buffer += '\n';
    if (buffer.size() < kBufferBytes) return true;
    written = write_all(fd, buffer);
    buffer.clear();
    return written.ok();
  }));
  if (!written.ok()) return written;
  return write_all(fd, buffer);
}

}  // namespace

// ---- The class ---------------------------------------------------------------------------------

Napi::Function VolumeObject::define(Napi::Env env) {
  return DefineClass(env, "NativeVolume",
                     {
                         InstanceMethod("info", &VolumeObject::info),
                         InstanceMethod("snapshots", &VolumeObject::snapshots),
                         InstanceMethod("createSnapshot", &VolumeObject::create_snapshot),
                         InstanceMethod("deleteSnapshot", &VolumeObject::delete_snapshot),
                         InstanceMethod("updateSnapshot", &VolumeObject::update_snapshot),
                         InstanceMethod("updateSettings", &VolumeObject::update_settings),
                         InstanceMethod("decideDrop", &VolumeObject::decide_drop),
                         InstanceMethod("setHold", &VolumeObject::set_hold),
                         InstanceMethod("clearHold", &VolumeObject::clear_hold),
                         InstanceMethod("freedIfDeleted", &VolumeObject::freed_if_deleted),
                         InstanceMethod("check", &VolumeObject::check),
                         InstanceMethod("dump", &VolumeObject::dump),
                         InstanceMethod("serveConnection", &VolumeObject::serve_connection),
                         InstanceMethod("connections", &VolumeObject::connections),
                         InstanceMethod("drainConnection", &VolumeObject::drain_connection),
                         InstanceMethod("closeConnection", &VolumeObject::close_connection),
                         InstanceMethod("close", &VolumeObject::close),
                     });
}

Napi::Value VolumeObject::wrap(Napi::Env env, std::shared_ptr<OpenVolume> volume) {
  auto external = Napi::External<std::shared_ptr<OpenVolume>>::New(env, &volume);
  return addon_data(env).volume_class.New({external});
}

VolumeObject::VolumeObject(const Call& call) : Napi::ObjectWrap<VolumeObject>(call) {
  if (!call[0].IsExternal()) {
    Napi::TypeError::New(call.Env(), "use openVolume()").ThrowAsJavaScriptException();
    return;
  }
  volume_ = *call[0].As<Napi::External<std::shared_ptr<OpenVolume>>>().Data();
}

// ---- Looks and care ----------------------------------------------------------------------------

Napi::Value VolumeObject::info(const Call& call) {
  VolumeInfo info;
  const Status status = volume_->with([&](Volume& volume) {
    info = volume.recent_info();
    return Status();
  });
  if (!status.ok()) return throw_status(call.Env(), status);
  return volume_info(call.Env(), info);
}

Napi::Value VolumeObject::freed_if_deleted(const Call& call) {
  std::vector<Uuid> uuids;
  if (!call[0].IsArray()) {
    Napi::TypeError::New(call.Env(), "a list of uuids is expected").ThrowAsJavaScriptException();
    return call.Env().Undefined();
  }
  const auto list = call[0].As<Napi::Array>();
  for (uint32_t i = 0; i < list.Length(); i++)
    if (!parse_uuid(call.Env(), list.Get(i), uuids.emplace_back())) return call.Env().Undefined();
  return run_with<uint64_t>(
      call.Env(), "csnap-freed", volume_,
      [uuids = std::move(uuids)](Volume& volume, uint64_t& out) -> Status {
        CSNAP_TRY_ASSIGN(out, volume.freed_if_deleted(uuids));
        return Status();
      },
      [](Napi::Env env, const uint64_t& bytes) -> Napi::Value {
        return Napi::Number::New(env, static_cast<double>(bytes));
      });
}

Napi::Value VolumeObject::check(const Call& call) {
  Options options(call[0]);
  const bool data = options.flag("data");
  auto progress = progress_to(call.Env(), JsCallback::make(options.value("onProgress")));
  if (!options.ok()) return call.Env().Undefined();
  if (!progress) progress = [](uint64_t, uint64_t) {};
  return run_with<CheckReport>(
      call.Env(), "csnap-check", volume_,
      [data, progress = std::move(progress)](Volume& volume, CheckReport& out) -> Status {
        CSNAP_TRY_ASSIGN(out, volume.check(data, progress));
        return Status();
      },
      check_report);
}

Napi::Value VolumeObject::dump(const Call& call) {
  // A dup: the caller may close its own when it gives up waiting.
  const int fd = call[0].IsNumber() ? call[0].As<Napi::Number>().Int32Value() : -1;
  auto own = std::make_shared<UniqueFd>(fcntl(fd, F_DUPFD_CLOEXEC, 3));
  if (!*own)
    return throw_status(call.Env(), Status::from_errno(errno, "the dump can't be written"));
  return run_with<Nothing>(
      call.Env(), "csnap-dump", volume_,
      [own](Volume& volume, Nothing&) { return dump_to(volume, own->get()); }, undefined);
}

Napi::Value VolumeObject::update_settings(const Call& call) {
  Options options(call[0]);
  Volume::Settings settings;
  if (options.has("onFull")) {
    format::OnFull on_full;
    if (!parse_on_full(options.text("onFull"), on_full))
      return throw_status(call.Env(), Status(Code::INVALID_ARGUMENT, "unknown on-full policy"));
    settings.on_full = static_cast<int>(on_full);
  }
  const auto bytes = [&](const char* key, int64_t& setting) {
    if (options.has(key)) setting = static_cast<int64_t>(options.number(key));
  };
  bytes("stagedLimitBytes", settings.staged_limit_bytes);
  bytes("cacheLimitBytes", settings.cache_limit_bytes);
  bytes("reclaimRateBytes", settings.reclaim_rate_bytes);
  if (!options.ok()) return call.Env().Undefined();
  return run_with<Nothing>(
      call.Env(), "csnap-settings", volume_,
      [settings](Volume& volume, Nothing&) { return volume.update_settings(settings); }, undefined);
}

// ---- Snapshots ---------------------------------------------------------------------------------

Napi::Value VolumeObject::snapshots(const Call& call) {
  return run_with<std::vector<SnapshotInfo>>(
      call.Env(), "csnap-list", volume_,
      [](Volume& volume, std::vector<SnapshotInfo>& out) -> Status {
        CSNAP_TRY_ASSIGN(out, volume.list_snapshots());
        return Status();
      },
      snapshot_list);
}

Napi::Value VolumeObject::create_snapshot(const Call& call) {
  Options options(call[0]);
  std::string name = options.text("name");
  const bool pinned = options.flag("pinned");
  const uint64_t priority = options.number("priority");
  auto labels = label_pairs(options.value("labels"));
  if (!options.ok()) return call.Env().Undefined();
  return run_with<SnapshotInfo>(
      call.Env(), "csnap-snapshot", volume_,
      [name = std::move(name), pinned, priority, labels = std::move(labels)](
          Volume& volume, SnapshotInfo& out) -> Status {
        if (priority > 100) return Status(Code::INVALID_ARGUMENT, "priority is 0 to 100");
        CSNAP_TRY_ASSIGN(
            out, volume.create_snapshot(name, pinned, static_cast<uint8_t>(priority), labels));
        return Status();
      },
      snapshot_object);
}

Napi::Value VolumeObject::delete_snapshot(const Call& call) {
  Uuid uuid;
  if (!parse_uuid(call.Env(), call[0], uuid)) return call.Env().Undefined();
  const bool dropped = call[1].IsBoolean() && call[1].As<Napi::Boolean>().Value();
  return run_with<Nothing>(
      call.Env(), "csnap-delete", volume_,
      [uuid, dropped](Volume& volume, Nothing&) { return volume.delete_snapshot(uuid, dropped); },
      undefined);
}

Napi::Value VolumeObject::update_snapshot(const Call& call) {
  Uuid uuid;
  if (!parse_uuid(call.Env(), call[0], uuid)) return call.Env().Undefined();
  Options options(call[1]);
  Volume::SnapshotChanges changes;
  if (options.has("pinned")) changes.pinned = options.flag("pinned") ? 1 : 0;
  uint64_t priority = 0;
  if (options.has("priority")) {
    priority = options.number("priority");
    changes.priority = static_cast<int>(std::min<uint64_t>(priority, 101));
  }
  if (options.has("labels")) changes.set_labels = label_pairs(options.value("labels"));
  if (!options.ok()) return call.Env().Undefined();
  return run_with<SnapshotInfo>(
      call.Env(), "csnap-update", volume_,
      [uuid, changes = std::move(changes)](Volume& volume, SnapshotInfo& out) -> Status {
        if (changes.priority > 100) return Status(Code::INVALID_ARGUMENT, "priority is 0 to 100");
        CSNAP_TRY_ASSIGN(out, volume.update_snapshot(uuid, changes));
        return Status();
      },
      snapshot_object);
}

Napi::Value VolumeObject::decide_drop(const Call& call) {
  Uuid uuid;
  if (!parse_uuid(call.Env(), call[0], uuid)) return call.Env().Undefined();
  // Too late is no error: the core has followed its policy then.
  (void)volume_->with([&](Volume& volume) {
    volume.decide_drop(uuid);
    return Status();
  });
  return call.Env().Undefined();
}

// ---- The hold ----------------------------------------------------------------------------------

Napi::Value VolumeObject::set_hold(const Call& call) {
  Options options(call[0]);
  std::string host = options.text("host");
  Uuid attachment;
  if (!options.ok() || !parse_uuid(call.Env(), options.value("attachment"), attachment))
    return call.Env().Undefined();
  return run_with<HoldInfo>(
      call.Env(), "csnap-hold", volume_,
      [attachment, host = std::move(host)](Volume& volume, HoldInfo& out) -> Status {
        CSNAP_TRY_ASSIGN(out, volume.set_hold(attachment, host));
        return Status();
      },
      hold_or_null);
}

// '' is whosever hold it is.
Napi::Value VolumeObject::clear_hold(const Call& call) {
  Uuid attachment;
  if (!parse_uuid(call.Env(), call[0], attachment)) return call.Env().Undefined();
  return run_with<HoldInfo>(
      call.Env(), "csnap-unhold", volume_,
      [attachment](Volume& volume, HoldInfo& out) -> Status {
        CSNAP_TRY_ASSIGN(out, volume.clear_hold(attachment, attachment.is_nil()));
        return Status();
      },
      [](Napi::Env env, const HoldInfo& ended) -> Napi::Value {
        return Napi::Boolean::New(env, ended.held());
      });
}

// ---- Connections -------------------------------------------------------------------------------

Napi::Value VolumeObject::serve_connection(const Call& call) {
  const Napi::Env env = call.Env();
  Options options(call[1]);
  nbd::ConnectionOptions connection;
  Uuid snapshot;
  connection.read_only = options.flag("readOnly");
  connection.structured_replies = options.flag("structuredReplies");
  connection.base_allocation_id = options.signed_number("baseAllocationId");
  const Napi::Value initial = options.value("initialBytes");
  if (!options.ok() || !parse_uuid(env, options.value("snapshot"), snapshot))
    return env.Undefined();
  if (!call[0].IsNumber() || !initial.IsTypedArray() ||
      initial.As<Napi::TypedArray>().TypedArrayType() != napi_uint8_array) {
    Napi::TypeError::New(env, "a descriptor and initialBytes are expected")
        .ThrowAsJavaScriptException();
    return env.Undefined();
  }
  const auto bytes = initial.As<Napi::Uint8Array>();
  connection.initial_bytes.assign(bytes.Data(), bytes.Data() + bytes.ByteLength());
  const int fd = call[0].As<Napi::Number>().Int32Value();
  connection.socket = UniqueFd(fcntl(fd, F_DUPFD_CLOEXEC, 3));
  if (!connection.socket)
    return throw_status(env, Status::from_errno(errno, "a connection can't be started"));
  uint64_t id = 0;
  const Status status = volume_->serve(snapshot, std::move(connection), id);
  if (!status.ok()) return throw_status(env, status);
  return Napi::Number::New(env, static_cast<double>(id));
}

Napi::Value VolumeObject::connections(const Call& call) {
  return connection_list(call.Env(), volume_->connections().list());
}

Napi::Value VolumeObject::drain_connection(const Call& call) {
  volume_->connections().drain(static_cast<uint64_t>(call[0].ToNumber().Int64Value()));
  return call.Env().Undefined();
}

Napi::Value VolumeObject::close_connection(const Call& call) {
  volume_->connections().cut(static_cast<uint64_t>(call[0].ToNumber().Int64Value()),
                             "closed by the server");
  return call.Env().Undefined();
}

Napi::Value VolumeObject::close(const Call& call) {
  const bool first = volume_->begin_close();
  return run_async(
      call.Env(), "csnap-close",
      [volume = volume_, first] {
        return first ? volume->close()
                     : Status(Code::SHUTTING_DOWN, "the volume is closed already");
      },
      [](Napi::Env env) { return env.Undefined(); });
}

}  // namespace csnap::addon
