// Threads that help whoever calls, and how a thread waits: it looks for a moment, then it gives its core away.
#pragma once
#include "../cores.h"
#include <atomic>
#include <climits>
#include <cstdint>

namespace native {

int64_t now_ns();

inline void pause() {
#ifdef __x86_64__
  __builtin_ia32_pause();
#endif
}

// A number that threads wait for. Its waits end early at times, so whoever waits looks again.
class Signal {
  std::atomic<uint32_t> word{0};
  std::atomic<int> sleepers{0};

 public:
  uint32_t value() const { return word.load(std::memory_order_acquire); }
  void raise(int threads = INT_MAX);
  void sleep(uint32_t value, int64_t at_most_ns);  // while it is still `value`
};

// What several threads do together.
class Task {
  friend class Helpers;
  long wanted = 0, joined = 0, inside = 0;  // threads besides the caller's; under the lock of Helpers
  const void* home = nullptr;               // the Helpers it was offered to; a child process has others

 public:
  virtual uint64_t joins(long member) = 0;             // member: 1, 2 ... `wanted`; under the lock
  virtual bool help(long member, uint64_t ticket) = 0;  // with what `joins` returned; false: the thread should sleep

 protected:
  ~Task() = default;
};

// All tasks of the process share the threads, which are started when they are first wanted. Fewer may come than are
// wanted, or none, and they may come late: a task must not depend on them.
void offer(Task& task, long threads);
void withdraw(Task& task);         // no more threads come
void wait_until_left(Task& task);  // by all threads, after it was withdrawn

}  // namespace native
