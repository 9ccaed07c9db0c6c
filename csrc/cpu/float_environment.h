// The floating-point state that the contract needs: round to nearest, subnormals kept, exceptions masked.
//
// torch.set_flush_denormal(True) and -ffast-math libraries switch subnormals off for the whole thread, which would
// change sums; a new thread inherits the state of its creator. So every call and every task of a worker runs inside one
// of these, which puts back what was there.
//
// Compilers know nothing of that state, and may move arithmetic across its changes. What is in memory that others can
// see they leave in its place; numbers of one's own go through `unmoved`.
#pragma once

#include <cstdint>

#if defined(__x86_64__) || defined(__i386__)
#include <xmmintrin.h>
#endif

namespace fastreg {

class FloatEnvironment {
 public:
  FloatEnvironment() : saved_(read()), changed_((saved_ & control_mask) != wanted) {
    if (changed_) {
      write((saved_ & ~control_mask) | wanted);
    }
    asm volatile("" : : : "memory");
  }
  ~FloatEnvironment() {
    asm volatile("" : : : "memory");
    if (changed_) {
      write(saved_);
    }
  }
  FloatEnvironment(const FloatEnvironment&) = delete;
  FloatEnvironment& operator=(const FloatEnvironment&) = delete;

  // The number itself: what it is computed from, and what is computed from it, stays on its side of this.
  static double unmoved(double number) {
    asm volatile("" : "+m"(number) : : "memory");
    return number;
  }

 private:
#if defined(__x86_64__) || defined(__i386__)
  using State = std::uint32_t;
  static constexpr State control_mask = 0xffc0;  // all but the sticky exception flags
  static constexpr State wanted = 0x1f80;        // the processor's own default
  static State read() { return _mm_getcsr(); }
  static void write(State state) { _mm_setcsr(state); }
#elif defined(__aarch64__)
  using State = std::uint64_t;
  static constexpr State control_mask = 0x07c89f00;  // AHP, DN, FZ, RMode, FZ16 and the trap enables
  static constexpr State wanted = 0;
  static State read() {
    State state;
    asm volatile("mrs %0, fpcr" : "=r"(state));
    return state;
  }
  static void write(State state) { asm volatile("msr fpcr, %0" : : "r"(state)); }
#else
  using State = unsigned;
  static constexpr State control_mask = 0;
  static constexpr State wanted = 0;
  static State read() { return 0; }
  static void write(State) {}
#endif

  State saved_;
  bool changed_;
};

}  // namespace fastreg
