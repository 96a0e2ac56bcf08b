#include "addon/netlink_calls.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "io/unique_fd.h"
#include "netlink/dead_links.h"
#include "netlink/device_access.h"
#include "netlink/hardening.h"
#include "netlink/kernel_socket.h"
#include "netlink/nbd_client.h"

namespace csnap::addon {
namespace {

Napi::Value wrong_arguments(Napi::Env env, const char* wanted) {
  if (!env.IsExceptionPending()) Napi::TypeError::New(env, wanted).ThrowAsJavaScriptException();
  return env.Undefined();
}

Napi::Value undefined(Napi::Env env) { return env.Undefined(); }

// ---- Arguments ---------------------------------------------------------------------------------

// A whole number from 0 to 2^31-1: descriptors, milliseconds.
bool small_number(const Napi::Value& value, int& out) {
  if (!value.IsNumber()) return false;
  const double number = value.As<Napi::Number>().DoubleValue();
  out = value.As<Napi::Number>().Int32Value();
  return out >= 0 && static_cast<double>(out) == number;
}

std::optional<uint64_t> optional_number(Options& options, const char* key) {
  if (!options.has(key)) return std::nullopt;
  return options.number(key);
}

// An index beyond 32 bits becomes the largest, which the kernel refuses.
uint32_t device_index(uint64_t number) {
  return static_cast<uint32_t>(std::min<uint64_t>(number, INT32_MAX));
}

// Copies that live as long as the call they are for.
using Descriptors = std::shared_ptr<std::vector<UniqueFd>>;

std::vector<int> numbers_of(const Descriptors& fds) {
  std::vector<int> numbers;
  for (const UniqueFd& fd : *fds) numbers.push_back(fd.get());
  return numbers;
}

// N1. Null: an exception is pending.
Descriptors duplicate_all(Napi::Env env, const Napi::Value& value) {
  auto copies = std::make_shared<std::vector<UniqueFd>>();
  if (value.IsUndefined()) return copies;
  if (!value.IsArray()) {
    wrong_arguments(env, "fds must be an array");
    return nullptr;
  }
  const auto list = value.As<Napi::Array>();
  for (uint32_t i = 0; i < list.Length(); i++) {
    int fd = -1;
    if (!small_number(list.Get(i), fd)) {
      wrong_arguments(env, "fds must hold descriptors");
      return nullptr;
    }
    copies->emplace_back(fcntl(fd, F_DUPFD_CLOEXEC, 3));
    if (copies->back()) continue;
    throw_status(env, Status::from_errno(errno, "descriptor " + std::to_string(fd) +
                                                    " can't be handed to the kernel"));
    return nullptr;
  }
  return copies;
}

// ---- The four commands -------------------------------------------------------------------------

Napi::Value nbd_connect(const Napi::CallbackInfo& call) {
  const Napi::Env env = call.Env();
  Options options(call[0]);
  netlink::ConnectOptions connect;
  if (const auto index = optional_number(options, "index")) connect.index = device_index(*index);
  connect.size_bytes = options.number("sizeBytes");
  connect.block_bytes = options.number("blockBytes");
  connect.transmission_flags = options.number("transmissionFlags");
  connect.timeout_seconds = options.number("timeoutSeconds");
  connect.dead_connection_timeout_seconds = options.number("deadConnectionTimeoutSeconds");
  connect.backend = options.text("backend");
  const Descriptors fds = options.ok() ? duplicate_all(env, options.value("fds")) : nullptr;
  if (!fds) return env.Undefined();
  auto index = std::make_shared<uint32_t>();
  return run_async(
      env, "nbd-connect",
      [connect, fds, index]() -> Status {
        CSNAP_TRY_ASSIGN(*index, netlink::connect_device(connect, numbers_of(fds)));
        return Status();
      },
      [index](Napi::Env js) -> Napi::Value { return Napi::Number::New(js, *index); });
}

Napi::Value nbd_reconfigure(const Napi::CallbackInfo& call) {
  const Napi::Env env = call.Env();
  Options options(call[0]);
  netlink::ReconfigureOptions change;
  change.index = device_index(options.number("index"));
  change.backend = options.text("backend");
  change.timeout_seconds = optional_number(options, "timeoutSeconds");
  change.dead_connection_timeout_seconds = optional_number(options, "deadConnectionTimeoutSeconds");
  change.size_bytes = optional_number(options, "sizeBytes");
  const Descriptors fds = options.ok() ? duplicate_all(env, options.value("fds")) : nullptr;
  if (!fds) return env.Undefined();
  return run_async(
      env, "nbd-reconfigure",
      [change, fds] { return netlink::reconfigure_device(change, numbers_of(fds)); }, undefined);
}

Napi::Value nbd_disconnect(const Napi::CallbackInfo& call) {
  int index = -1;
  if (!small_number(call[0], index)) return wrong_arguments(call.Env(), "an index is expected");
  return run_async(
      call.Env(), "nbd-disconnect",
      [index] { return netlink::disconnect_device(static_cast<uint32_t>(index)); }, undefined);
}

Napi::Value nbd_status(const Napi::CallbackInfo& call) {
  auto devices = std::make_shared<std::vector<netlink::DeviceStatus>>();
  return run_async(
      call.Env(), "nbd-status",
      [devices]() -> Status {
        CSNAP_TRY_ASSIGN(*devices, netlink::device_status());
        return Status();
      },
      [devices](Napi::Env js) -> Napi::Value {
        const Napi::Array list = Napi::Array::New(js, devices->size());
        for (uint32_t i = 0; i < devices->size(); i++) {
          const Napi::Object device = Napi::Object::New(js);
          device.Set("index", Napi::Number::New(js, (*devices)[i].index));
          device.Set("connected", Napi::Boolean::New(js, (*devices)[i].connected));
          list.Set(i, device);
        }
        return list;
      });
}

// ---- Dead links --------------------------------------------------------------------------------

// Touched on the JS thread only. Held by its environment's clean-up hook until it is closed (N2).
struct DeadLinkWatch : std::enable_shared_from_this<DeadLinkWatch> {
  napi_env env = nullptr;
  std::shared_ptr<JsCallback> on_dead;  // null: closed
  std::unique_ptr<netlink::DeadLinkListener> listener;
  std::shared_ptr<DeadLinkWatch> self;

  void close() {
    if (!on_dead) return;
    listener->stop();
    on_dead = nullptr;
    napi_remove_env_cleanup_hook(env, at_end, this);
    self = nullptr;  // the caller still holds one
  }
  static void at_end(void* watch) {
    const std::shared_ptr<DeadLinkWatch> keep = static_cast<DeadLinkWatch*>(watch)->self;
    keep->listener->stop();
    keep->on_dead = nullptr;
    keep->self = nullptr;
  }
};

Napi::Value watch_dead_links(const Napi::CallbackInfo& call) {
  const Napi::Env env = call.Env();
  auto watch = std::make_shared<DeadLinkWatch>();
  watch->env = env;
  watch->on_dead = JsCallback::make(call[0]);
  if (!watch->on_dead) return wrong_arguments(env, "a function is expected");
  const std::shared_ptr<JsQueue> queue = addon_data(env).queue;
  // The listener's thread holds the watch weakly: else it could be the one to free it.
  auto listener =
      netlink::DeadLinkListener::start([queue, weak = watch->weak_from_this()](int64_t index) {
        queue->post([weak, index](Napi::Env js) {
          const std::shared_ptr<DeadLinkWatch> mine = weak.lock();
          if (mine && mine->on_dead)
            mine->on_dead->call(js, {Napi::Number::New(js, static_cast<double>(index))});
        });
      });
  if (!listener.ok()) return throw_status(env, listener.status());
  watch->listener = listener.take();
  watch->self = watch;
  napi_add_env_cleanup_hook(env, DeadLinkWatch::at_end, watch.get());
  const Napi::Object handle = Napi::Object::New(env);
  handle.Set("close",
             Napi::Function::New(env, [watch](const Napi::CallbackInfo&) { watch->close(); }));
  return handle;
}

// ---- Sockets and descriptors -------------------------------------------------------------------

Napi::Value prepare_kernel_socket(const Napi::CallbackInfo& call) {
  int fd = -1;
  int silence_ms = 0;
  if (!small_number(call[0], fd) || !small_number(call[1], silence_ms))
    return wrong_arguments(call.Env(), "a descriptor and milliseconds are expected");
  Result<UniqueFd> copy = netlink::prepare_kernel_socket(fd, static_cast<uint32_t>(silence_ms));
  if (!copy.ok()) return throw_status(call.Env(), copy.status());
  return Napi::Number::New(call.Env(), copy.value().release());
}

Napi::Value shutdown_socket(const Napi::CallbackInfo& call) {
  int fd = -1;
  if (!small_number(call[0], fd)) return wrong_arguments(call.Env(), "a descriptor is expected");
  const Status status = netlink::shutdown_socket(fd);
  return status.ok() ? call.Env().Undefined() : throw_status(call.Env(), status);
}

Napi::Value close_descriptor(const Napi::CallbackInfo& call) {
  int fd = -1;
  if (!small_number(call[0], fd)) return wrong_arguments(call.Env(), "a descriptor is expected");
  // What close() may say besides is about data that a socket does not have.
  if (close(fd) != 0 && errno == EBADF)
    return throw_status(
        call.Env(), Status::from_errno(EBADF, "descriptor " + std::to_string(fd) + " to close"));
  return call.Env().Undefined();
}

// ---- Devices and the process -------------------------------------------------------------------

Napi::Value probe_device(const Napi::CallbackInfo& call) {
  if (!call[0].IsString()) return wrong_arguments(call.Env(), "a path is expected");
  return run_async(
      call.Env(), "probe-device",
      [path = call[0].As<Napi::String>().Utf8Value()] { return netlink::probe_device(path); },
      undefined);
}

Napi::Value flush_unused_device(const Napi::CallbackInfo& call) {
  if (!call[0].IsString() || !call[1].IsBoolean())
    return wrong_arguments(call.Env(), "a path and a boolean are expected");
  return run_async(
      call.Env(), "flush-device",
      [path = call[0].As<Napi::String>().Utf8Value(),
       read_only = call[1].As<Napi::Boolean>().Value()] {
        return netlink::flush_unused_device(path, read_only);
      },
      undefined);
}

Napi::Value harden_process(const Napi::CallbackInfo& call) {
  const Napi::Env env = call.Env();
  const netlink::Hardening got = netlink::harden_process();
  const Napi::Array problems = Napi::Array::New(env, got.problems.size());
  for (uint32_t i = 0; i < got.problems.size(); i++)
    problems.Set(i, Napi::String::New(env, got.problems[i]));
  const Napi::Object out = Napi::Object::New(env);
  out.Set("memoryLocked", Napi::Boolean::New(env, got.memory_locked));
  out.Set("ioFlusher", Napi::Boolean::New(env, got.io_flusher));
  out.Set("problems", problems);
  return out;
}

}  // namespace

void add_netlink_calls(Napi::Env env, Napi::Object exports) {
  const auto add = [&](const char* name, Napi::Value (*call)(const Napi::CallbackInfo&)) {
    exports.Set(name, Napi::Function::New(env, call, name));
  };
  add("nbdConnect", nbd_connect);
  add("nbdReconfigure", nbd_reconfigure);
  add("nbdDisconnect", nbd_disconnect);
  add("nbdStatus", nbd_status);
  add("watchDeadLinks", watch_dead_links);
  add("prepareKernelSocket", prepare_kernel_socket);
  add("shutdownSocket", shutdown_socket);
  add("closeDescriptor", close_descriptor);
  add("probeDevice", probe_device);
  add("flushUnusedDevice", flush_unused_device);
  add("hardenProcess", harden_process);
}

}  // namespace csnap::addon
