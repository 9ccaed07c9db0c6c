// Counts instructions by the processor's trap flag, on Linux and x86-64: while it is set, every instruction is followed
// by a signal, whose handler counts. A few microseconds each, more in a virtual machine; no privilege and no tool is
// needed. Elsewhere works() is false.
#pragma once

#include <csignal>
#include <cstddef>
#include <cstdint>

#if defined(__linux__) && defined(__x86_64__)
#include <ucontext.h>
#define FASTREG_HAVE_TRAP 1
#endif

namespace fastreg::trap {

// How often each byte of this program was the first of an instruction that ran next; what lies behind the end of the
// table, as shared libraries do, is not in it.
inline std::uint32_t visits[std::size_t{1} << 22];
inline volatile std::sig_atomic_t instructions = 0;

#if defined(FASTREG_HAVE_TRAP)

// What the addresses in a disassembly count from. The name is the linker's.
extern "C" const char __executable_start;  // NOLINT(bugprone-reserved-identifier,readability-identifier-naming)

inline void on_trap(int, siginfo_t*, void* context) {
  instructions = instructions + 1;
  const auto next = static_cast<std::uintptr_t>(static_cast<ucontext_t*>(context)->uc_mcontext.gregs[REG_RIP]);
  const std::uintptr_t place = next - reinterpret_cast<std::uintptr_t>(&__executable_start);
  if (place < sizeof visits / sizeof *visits) {
    ++visits[place];
  }
}

inline void start() {
  struct sigaction action{};
  action.sa_sigaction = on_trap;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGTRAP, &action, nullptr);
  instructions = 0;
  for (std::uint32_t& number : visits) {
    number = 0;
  }
  // The flag is bit 8 of a register that only the stack can reach; below the stack lie 128 bytes that may be in use.
  asm volatile("sub $128, %%rsp\n pushfq\n orq $0x100, (%%rsp)\n popfq\n add $128, %%rsp" ::: "cc", "memory");
}

// Gives the number of instructions since start().
inline long stop() {
  asm volatile("sub $128, %%rsp\n pushfq\n andq $~0x100, (%%rsp)\n popfq\n add $128, %%rsp" ::: "cc", "memory");
  return instructions;
}

// Whether what is counted is true here: an emulator or a sandbox may not deliver the signals.
inline bool works() {
  start();
  const long nothing = stop();
  start();
  asm volatile(".rept 100\n nop\n .endr" ::: "memory");
  return stop() == nothing + 100;
}

#else

inline void start() {}
inline long stop() { return 0; }
inline bool works() { return false; }

#endif

}  // namespace fastreg::trap
