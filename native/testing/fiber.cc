#include "testing/fiber.h"

#include <sys/mman.h>

#include <cstdint>

#include "base/assert.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif

#if defined(CSNAP_FIBER_ASSEMBLY)
// switch(save, to): pushes what the ABI lets a function keep in registers, stores the stack pointer
// in *save, takes `to` instead and pops. A new fiber's stack is laid out so that the pops load r12
// and r13 and the return lands in the thunk.
asm(R"(
  .text
  .globl csnap_fiber_switch
  .type csnap_fiber_switch, @function
csnap_fiber_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size csnap_fiber_switch, .-csnap_fiber_switch

  .globl csnap_fiber_thunk
  .type csnap_fiber_thunk, @function
csnap_fiber_thunk:
  movq %r12, %rdi
  callq *%r13
  ud2
  .size csnap_fiber_thunk, .-csnap_fiber_thunk
)");

extern "C" void csnap_fiber_switch(void** save, void* to);
extern "C" void csnap_fiber_thunk();
#endif

namespace csnap {

namespace {
// Only touched pages cost memory. Sanitizers make frames several times larger.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr size_t kStackBytes = 1024 * 1024;
#else
constexpr size_t kStackBytes = 256 * 1024;
#endif
constexpr size_t kGuardBytes = 16 * 1024;
}  // namespace

Fiber::~Fiber() {
  retire();
  if (mapping_ != nullptr) munmap(mapping_, kGuardBytes + kStackBytes);
}

void Fiber::prepare(void (*entry)(void*), void* argument) {
  if (mapping_ == nullptr) {
    mapping_ = mmap(nullptr, kGuardBytes + kStackBytes, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CSNAP_ASSERT(mapping_ != MAP_FAILED);
    CSNAP_ASSERT(mprotect(mapping_, kGuardBytes, PROT_NONE) == 0);
    stack_bottom_ = static_cast<char*>(mapping_) + kGuardBytes;
    stack_bytes_ = kStackBytes;
  }
  entry_ = entry;
  argument_ = argument;
  fake_stack_ = nullptr;
#if defined(__SANITIZE_ADDRESS__)
  // The former user left in the middle of its frames, red zones and all.
  __asan_unpoison_memory_region(stack_bottom_, stack_bytes_);
#endif
#if defined(__SANITIZE_THREAD__)
  retire();
  tsan_fiber_ = __tsan_create_fiber(0);
  owns_tsan_fiber_ = true;
#endif
#if defined(CSNAP_FIBER_ASSEMBLY)
  auto** top = reinterpret_cast<void**>(stack_bottom_ + stack_bytes_);
  *--top = nullptr;  // ends a debugger's walk, and aligns the thunk's call to 16 bytes
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(&csnap_fiber_thunk);
  *--top = nullptr;                                 // rbp
  *--top = nullptr;                                 // rbx
  *--top = this;                                    // r12
  *--top = reinterpret_cast<void*>(&Fiber::start);  // r13
  *--top = nullptr;                                 // r14
  *--top = nullptr;                                 // r15
  stack_pointer_ = top;
#else
  CSNAP_ASSERT(getcontext(&context_) == 0);
  context_.uc_stack.ss_sp = stack_bottom_;
  context_.uc_stack.ss_size = stack_bytes_;
  context_.uc_link = nullptr;
  const auto self = reinterpret_cast<uintptr_t>(this);
  makecontext(&context_, reinterpret_cast<void (*)()>(&Fiber::start_split), 2,
              static_cast<unsigned>(self), static_cast<unsigned>(uint64_t{self} >> 32));
#endif
}

void Fiber::switch_to(Fiber& from, Fiber& to, bool from_ends) {
  CSNAP_ASSERT(&from != &to);
  to.came_from_ = &from;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(from_ends ? nullptr : &from.fake_stack_, to.stack_bottom_,
                                 to.stack_bytes_);
#endif
#if defined(__SANITIZE_THREAD__)
  if (from.tsan_fiber_ == nullptr) from.tsan_fiber_ = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(to.tsan_fiber_, 0);
#endif
#if defined(CSNAP_FIBER_ASSEMBLY)
  csnap_fiber_switch(&from.stack_pointer_, to.stack_pointer_);
#else
  CSNAP_ASSERT(swapcontext(&from.context_, &to.context_) == 0);
#endif
  CSNAP_ASSERT(!from_ends);
  from.arrived();
}

void Fiber::arrived() {
#if defined(__SANITIZE_ADDRESS__)
  const void* bottom = nullptr;
  size_t bytes = 0;
  __sanitizer_finish_switch_fiber(fake_stack_, &bottom, &bytes);
  if (came_from_->mapping_ == nullptr) {
    // A home runs on a stack that is not ours; this is how its bounds become known.
    came_from_->stack_bottom_ = static_cast<char*>(const_cast<void*>(bottom));
    came_from_->stack_bytes_ = bytes;
  }
#endif
}

void Fiber::start(void* self) {
  auto* fiber = static_cast<Fiber*>(self);
  fiber->arrived();
  fiber->entry_(fiber->argument_);
  CSNAP_ASSERT(false);
}

void Fiber::start_split(unsigned low, unsigned high) {
  start(reinterpret_cast<void*>(static_cast<uintptr_t>(uint64_t{high} << 32 | low)));
}

void Fiber::retire() {
#if defined(__SANITIZE_THREAD__)
  if (owns_tsan_fiber_) __tsan_destroy_fiber(tsan_fiber_);
#endif
  tsan_fiber_ = nullptr;
  owns_tsan_fiber_ = false;
}

}  // namespace csnap
