// What every call of the addon needs: the environment's own data, errors, arguments, closures that
// run on the JS thread, and promises whose work has a thread of its own (libuv's four would be
// blocked for everybody by a long check or close). Callers: addon/ only; the only headers with
// napi.h are here.
//
// Invariants
//  A1  JS values and references are touched on the JS thread only; a closure that holds one is
//      destroyed there.
//  A2  A promise is settled exactly once, unless the environment ends first.
#pragma once

#include <napi.h>

#include <functional>
#include <memory>
#include <string>

#include "base/status.h"
#include "base/sync.h"

namespace csnap::addon {

// Closures on their way to the JS thread. post() from any thread, the rest on the JS thread.
class JsQueue : public std::enable_shared_from_this<JsQueue> {
 public:
  static std::shared_ptr<JsQueue> make(Napi::Env env);

  // False when the environment has ended: the closure was not taken.
  bool post(std::function<void(Napi::Env)> closure);
  // While jobs are pending the queue keeps the process alive; events alone do not.
  void begin_job(Napi::Env env);
  void end_job(Napi::Env env);

 private:
  static void call(napi_env env, napi_value function, void* context, void* data);
  static void finalize(napi_env env, void* data, void* hint);

  Mutex mutex_;
  napi_threadsafe_function function_ = nullptr;  // null: the environment has ended
  size_t jobs_ = 0;
};

// Of one environment (the main thread or a worker).
struct AddonData {
  std::shared_ptr<JsQueue> queue;
  Napi::FunctionReference error_class;
  Napi::FunctionReference volume_class;
};
AddonData& addon_data(Napi::Env env);

// A JS function that other threads may have called.
class JsCallback {
 public:
  // Null where `value` is no function.
  static std::shared_ptr<JsCallback> make(Napi::Value value);
  // On the JS thread. An exception of the callee becomes an uncaught one.
  void call(Napi::Env env, std::initializer_list<napi_value> arguments) const;

 private:
  Napi::FunctionReference function_;
};

// ---- Errors ------------------------------------------------------------------------------------

// A NativeError.
Napi::Value make_error(Napi::Env env, const Status& status);
// Throws it; returns undefined.
Napi::Value throw_status(Napi::Env env, const Status& status);

// ---- Promises ----------------------------------------------------------------------------------

// Runs `work` on a thread of its own, then settles with `result` (called on the JS thread), or
// rejects with the status. Both may hold JS callbacks (A1).
Napi::Promise run_async(Napi::Env env, const char* name, std::function<Status()> work,
                        std::function<Napi::Value(Napi::Env)> result);

// A progress callback for `work`: posts at most every 100 ms, and the last step. Empty function
// where there is no callback.
std::function<void(uint64_t, uint64_t)> progress_to(Napi::Env env,
                                                    std::shared_ptr<JsCallback> callback);

// ---- Arguments ---------------------------------------------------------------------------------

// Reads properties of an options object. TypeScript has checked them for people; a wrong type here
// is a mistake of our own and throws a TypeError, after which ok() is false.
class Options {
 public:
  explicit Options(const Napi::Value& value);
  bool ok() const;
  bool has(const char* key) const;
  std::string text(const char* key);
  bool flag(const char* key);
  // A whole number from 0 to 2^53.
  uint64_t number(const char* key);
  // A whole number, negative ones included.
  int64_t signed_number(const char* key);
  Napi::Value value(const char* key) const;

 private:
  void wrong(const char* key, const char* wanted);
  Napi::Env env_;
  Napi::Object object_;
};

}  // namespace csnap::addon
