#include "addon/plumbing.h"

#include <cmath>

namespace csnap::addon {

AddonData& addon_data(Napi::Env env) {
  auto* data = env.GetInstanceData<AddonData>();
  CSNAP_ASSERT(data != nullptr);
  return *data;
}

// ---- The way to the JS thread ------------------------------------------------------------------

using Closure = std::function<void(Napi::Env)>;

std::shared_ptr<JsQueue> JsQueue::make(Napi::Env env) {
  auto queue = std::make_shared<JsQueue>();
  auto keep = std::make_unique<std::shared_ptr<JsQueue>>(queue);
  const napi_value name = Napi::String::New(env, "csnap");
  const napi_status status = napi_create_threadsafe_function(
      env, nullptr, nullptr, name, 0, 1, keep.get(), finalize, nullptr, call, &queue->function_);
  CSNAP_ASSERT(status == napi_ok);
  (void)keep.release();  // finalize() takes it over
  napi_unref_threadsafe_function(env, queue->function_);
  return queue;
}

void JsQueue::finalize(napi_env, void* data, void*) {
  const std::unique_ptr<std::shared_ptr<JsQueue>> keep(
      static_cast<std::shared_ptr<JsQueue>*>(data));
  MutexLock lock((*keep)->mutex_);
  (*keep)->function_ = nullptr;
}

// Without an environment, what is left in the queue is only let go of.
void JsQueue::call(napi_env env, napi_value, void*, void* data) {
  const std::unique_ptr<Closure> closure(static_cast<Closure*>(data));
  if (env != nullptr) (*closure)(Napi::Env(env));
}

bool JsQueue::post(Closure closure) {
  auto data = std::make_unique<Closure>(std::move(closure));
  MutexLock lock(mutex_);
  if (function_ == nullptr) return false;
  if (napi_call_threadsafe_function(function_, data.get(), napi_tsfn_nonblocking) != napi_ok) {
    // The environment is ending. What the closure holds can only be let go of on the JS thread,
    // which is gone; the process ends too.
    function_ = nullptr;
    (void)data.release();
    return false;
  }
  (void)data.release();
  return true;
}

void JsQueue::begin_job(Napi::Env env) {
  MutexLock lock(mutex_);
  if (jobs_++ == 0 && function_ != nullptr) napi_ref_threadsafe_function(env, function_);
}

void JsQueue::end_job(Napi::Env env) {
  MutexLock lock(mutex_);
  if (--jobs_ == 0 && function_ != nullptr) napi_unref_threadsafe_function(env, function_);
}

std::shared_ptr<JsCallback> JsCallback::make(Napi::Value value) {
  if (!value.IsFunction()) return nullptr;
  auto callback = std::make_shared<JsCallback>();
  callback->function_ = Napi::Persistent(value.As<Napi::Function>());
  return callback;
}

void JsCallback::call(Napi::Env env, std::initializer_list<napi_value> arguments) const {
  const Napi::HandleScope scope(env);
  function_.Call(arguments);
}

// ---- Errors ------------------------------------------------------------------------------------

Napi::Value make_error(Napi::Env env, const Status& status) {
  const Napi::FunctionReference& error_class = addon_data(env).error_class;
  CSNAP_ASSERT(!error_class.IsEmpty());
  return error_class.New({Napi::String::New(env, code_name(status.code())),
                          Napi::String::New(env, status.message()),
                          Napi::Number::New(env, status.error_number())});
}

Napi::Value throw_status(Napi::Env env, const Status& status) {
  napi_throw(env, make_error(env, status));
  return env.Undefined();
}

// ---- Promises ----------------------------------------------------------------------------------

namespace {

struct Job {
  explicit Job(Napi::Env env) : deferred(Napi::Promise::Deferred::New(env)) {}
  ~Job() { thread.join(); }

  Napi::Promise::Deferred deferred;
  std::function<Status()> work;
  std::function<Napi::Value(Napi::Env)> result;
  Status status;
  Thread thread;
};

void settle(Napi::Env env, Job& job) {
  const Napi::HandleScope scope(env);
  if (!job.status.ok()) {
    job.deferred.Reject(make_error(env, job.status));
    return;
  }
  const Napi::Value value = job.result(env);
  if (!env.IsExceptionPending()) {
    job.deferred.Resolve(value);
    return;
  }
  const Napi::Error error = env.GetAndClearPendingException();
  job.deferred.Reject(error.Value());
}

}  // namespace

Napi::Promise run_async(Napi::Env env, const char* name, std::function<Status()> work,
                        std::function<Napi::Value(Napi::Env)> result) {
  auto job = std::make_shared<Job>(env);
  job->work = std::move(work);
  job->result = std::move(result);
  const std::shared_ptr<JsQueue> queue = addon_data(env).queue;
  queue->begin_job(env);
  Job* const raw = job.get();
  const Napi::Promise promise = job->deferred.Promise();
  // The thread's own reference goes with the closure to the JS thread, which joins it there.
  raw->thread.start(name, [job = std::move(job), queue]() mutable {
    job->status = job->work();
    auto* const held = new std::shared_ptr<Job>(std::move(job));
    const bool posted = queue->post([held, queue](Napi::Env env) {
      const std::unique_ptr<std::shared_ptr<Job>> mine(held);
      settle(env, **mine);
      queue->end_job(env);
    });
    // Not posted: the environment has ended and the process is about to; `held` stays, because
    // its JS references could not be freed here.
    (void)posted;
  });
  return promise;
}

std::function<void(uint64_t, uint64_t)> progress_to(Napi::Env env,
                                                    std::shared_ptr<JsCallback> callback) {
  if (!callback) return {};
  constexpr uint64_t kIntervalMs = 100;
  const std::shared_ptr<JsQueue> queue = addon_data(env).queue;
  return [queue, callback = std::move(callback), last = uint64_t{0}](uint64_t done,
                                                                     uint64_t total) mutable {
    const uint64_t now = monotonic_ms();
    if (done < total && now < last + kIntervalMs) return;
    last = now;
    queue->post([callback, done, total](Napi::Env env) {
      callback->call(env, {Napi::Number::New(env, static_cast<double>(done)),
                           Napi::Number::New(env, static_cast<double>(total))});
    });
  };
}

// ---- Arguments ---------------------------------------------------------------------------------

Options::Options(const Napi::Value& value) : env_(value.Env()) {
  if (value.IsObject())
    object_ = value.As<Napi::Object>();
  else
    wrong("options", "an object");
}

bool Options::ok() const { return !env_.IsExceptionPending(); }

void Options::wrong(const char* key, const char* wanted) {
  if (!env_.IsExceptionPending())
    Napi::TypeError::New(env_, std::string(key) + " must be " + wanted)
        .ThrowAsJavaScriptException();
}

Napi::Value Options::value(const char* key) const {
  if (!ok()) return env_.Undefined();
  return object_.Get(key);
}

bool Options::has(const char* key) const { return !value(key).IsUndefined(); }

std::string Options::text(const char* key) {
  const Napi::Value found = value(key);
  if (found.IsString()) return found.As<Napi::String>().Utf8Value();
  wrong(key, "a string");
  return {};
}

bool Options::flag(const char* key) {
  const Napi::Value found = value(key);
  if (found.IsBoolean()) return found.As<Napi::Boolean>().Value();
  wrong(key, "a boolean");
  return false;
}

int64_t Options::signed_number(const char* key) {
  constexpr double kMax = 9007199254740992.0;  // 2^53
  const Napi::Value found = value(key);
  if (found.IsNumber()) {
    const double number = found.As<Napi::Number>().DoubleValue();
    if (std::floor(number) == number && std::fabs(number) <= kMax)
      return static_cast<int64_t>(number);
  }
  wrong(key, "a whole number");
  return 0;
}

uint64_t Options::number(const char* key) {
  const int64_t number = signed_number(key);
  if (number < 0) wrong(key, "a number from 0");
  return number < 0 ? 0 : static_cast<uint64_t>(number);
}

}  // namespace csnap::addon
