#include "addon/gate_calls.h"

#include <cmath>
#include <map>

namespace csnap::addon {
namespace {

// Of the process: its environments share it, and it outlives them all.
class Gates {
 public:
  static Gates& instance() {
    static Gates gates;
    return gates;
  }
  uint64_t make() {
    MutexLock lock(mutex_);
    open_.emplace(next_, std::make_shared<Gate>());
    return next_++;
  }
  // Null: never made. GC2
  std::shared_ptr<Gate> find(uint64_t number) {
    MutexLock lock(mutex_);
    if (number == 0 || number >= next_) return nullptr;
    if (const auto found = open_.find(number); found != open_.end()) return found->second;
    auto gone = std::make_shared<Gate>();
    gone->shut();
    return gone;
  }
  void forget(uint64_t number) {
    MutexLock lock(mutex_);
    open_.erase(number);
  }

 private:
  Mutex mutex_;
  std::map<uint64_t, std::shared_ptr<Gate>> open_;
  uint64_t next_ = 1;
};

uint64_t number_of(const Napi::Value& value) {
  constexpr double kMax = 9007199254740992.0;  // 2^53
  const double number = value.IsNumber() ? value.As<Napi::Number>().DoubleValue() : 0;
  const bool whole = std::floor(number) == number && number >= 1 && number < kMax;
  return whole ? static_cast<uint64_t>(number) : 0;
}

Napi::Value create_gate(const Napi::CallbackInfo& call) {
  return Napi::Number::New(call.Env(), static_cast<double>(Gates::instance().make()));
}

Napi::Value extend_gate(const Napi::CallbackInfo& call) {
  constexpr double kMsMax = 9e12;  // as ns it still fits
  const Napi::Env env = call.Env();
  const double ms = call[1].IsNumber() ? call[1].As<Napi::Number>().DoubleValue() : -1;
  if (!(ms >= 0 && ms <= kMsMax)) {
    Napi::TypeError::New(env, "a deadline in milliseconds is expected")
        .ThrowAsJavaScriptException();
    return env.Undefined();
  }
  // Rounded down: never open for longer than was asked.
  if (const auto gate = gate_argument(env, call[0]))
    gate->extend(static_cast<int64_t>(std::floor(ms * 1e6)));
  return env.Undefined();
}

Napi::Value shut_gate(const Napi::CallbackInfo& call) {
  if (const auto gate = gate_argument(call.Env(), call[0])) {
    gate->shut();
    Gates::instance().forget(number_of(call[0]));
  }
  return call.Env().Undefined();
}

Napi::Value boottime_ms(const Napi::CallbackInfo& call) {
  return Napi::Number::New(call.Env(), static_cast<double>(boottime_ns()) / 1e6);
}

}  // namespace

std::shared_ptr<Gate> gate_argument(Napi::Env env, const Napi::Value& value) {
  std::shared_ptr<Gate> gate = Gates::instance().find(number_of(value));
  if (!gate)
    Napi::TypeError::New(env, "the number of a gate is expected").ThrowAsJavaScriptException();
  return gate;
}

void add_gate_calls(Napi::Env env, Napi::Object exports) {
  const auto add = [&](const char* name, Napi::Value (*call)(const Napi::CallbackInfo&)) {
    exports.Set(name, Napi::Function::New(env, call, name));
  };
  add("createGate", create_gate);
  add("extendGate", extend_gate);
  add("shutGate", shut_gate);
  add("boottimeMs", boottime_ms);
}

}  // namespace csnap::addon
