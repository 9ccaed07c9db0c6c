// The signals of threads that are made while this lives: a thread inherits those that its creator blocks.
//
// Threads of ours take none that are the process's: its handlers are written for threads that it knows. The signals of
// faults stay, for whoever prints where a fault was.
#pragma once

#include <csignal>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace fastreg {

class SignalsBlocked {
 public:
#if defined(__unix__) || defined(__APPLE__)
  SignalsBlocked() {
    sigset_t blocked;
    sigfillset(&blocked);
    for (const int fault : {SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGSEGV, SIGSYS, SIGTRAP}) {
      sigdelset(&blocked, fault);
    }
    pthread_sigmask(SIG_BLOCK, &blocked, &before_);
  }
  ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  SignalsBlocked(const SignalsBlocked&) = delete;
  SignalsBlocked& operator=(const SignalsBlocked&) = delete;

 private:
  sigset_t before_;
#endif
};

}  // namespace fastreg
