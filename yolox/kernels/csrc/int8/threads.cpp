#include "threads.h"
#include <algorithm>
#include <ctime>
#include <linux/futex.h>
#include <mutex>
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <vector>

#if defined(__x86_64__) && defined(__GLIBC__)
// The version under which every glibc has it; that of 2.34 and later would shut out the earlier ones.
__asm__(".symver pthread_create, pthread_create@GLIBC_2.2.5");
#elif defined(__aarch64__) && defined(__GLIBC__)
__asm__(".symver pthread_create, pthread_create@GLIBC_2.17");
#endif

namespace native {

int64_t now_ns() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000 + t.tv_nsec;
}

void Signal::raise(int threads) {
  word.fetch_add(1);
  if (sleepers.load() > 0) syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, threads, nullptr, nullptr, 0);
}

void Signal::sleep(uint32_t value, int64_t at_most_ns) {
  timespec most{at_most_ns / 1000000000, long(at_most_ns % 1000000000)};
  sleepers.fetch_add(1);
  syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, value, at_most_ns < INT64_MAX ? &most : nullptr, nullptr, 0);
  sleepers.fetch_sub(1);
}

class Helpers {
  static constexpr int64_t LOOK = 100000;  // ns between a task and the next for which a thread stays awake

  std::mutex lock;
  std::vector<Task*> tasks;
  long threads = 0;
  Signal offered;

  Task* next(long& member, uint64_t& ticket) {
    std::lock_guard<std::mutex> guard(lock);
    for (Task* task : tasks)
      if (task->joined < task->wanted) {
        member = ++task->joined;
        ++task->inside;
        ticket = task->joins(member);
        return task;
      }
    return nullptr;
  }

  void work() {
    for (int64_t idle_since = now_ns();;) {
      uint32_t seen = offered.value();
      long member;
      uint64_t ticket;
      if (Task* task = next(member, ticket)) {
        const bool awake = task->help(member, ticket);
        std::lock_guard<std::mutex> guard(lock);
        --task->inside;
        idle_since = awake ? now_ns() : 0;
        continue;
      }
      while (offered.value() == seen && now_ns() - idle_since < LOOK) pause();
      if (offered.value() != seen) continue;
      offered.sleep(seen, INT64_MAX);
      idle_since = now_ns();
    }
  }

  void start(long count) {  // under the lock; where the system gives no thread there are fewer
    pthread_attr_t attributes;
    if (pthread_attr_init(&attributes)) return;
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    auto run = [](void* self) -> void* {
      ((Helpers*)self)->work();
      return nullptr;
    };
    for (pthread_t thread; threads < count && !pthread_create(&thread, &attributes, run, this);) ++threads;
    pthread_attr_destroy(&attributes);
  }

 public:
  void offer(Task& task, long wanted) {
    {
      std::lock_guard<std::mutex> guard(lock);
      if (tasks.size() == tasks.capacity()) return;
      if (task.home != this) task.inside = 0;
      task.wanted = wanted, task.joined = 0, task.home = this;
      tasks.push_back(&task);
      long all = 0;
      for (Task* one : tasks) all += one->wanted;
      start(all);
    }
    offered.raise(int(wanted));
  }

  void withdraw(Task& task) {
    std::lock_guard<std::mutex> guard(lock);
    tasks.erase(std::remove(tasks.begin(), tasks.end(), &task), tasks.end());
  }

  bool has_left(Task& task) {
    std::lock_guard<std::mutex> guard(lock);
    return task.inside == 0 || task.home != this;
  }

  Helpers() { tasks.reserve(1024); }
};

// Never destroyed, as its threads never end; a child process begins with none of them.
static std::atomic<Helpers*> helpers{nullptr};

static Helpers& the_helpers() {
  static const int registered = pthread_atfork(nullptr, nullptr, [] { helpers.store(nullptr); });
  (void)registered;
  Helpers* now = helpers.load();
  if (now) return *now;
  Helpers* made = new Helpers;
  if (helpers.compare_exchange_strong(now, made)) return *made;
  delete made;
  return *now;
}

void offer(Task& task, long threads) { the_helpers().offer(task, threads); }
void withdraw(Task& task) { the_helpers().withdraw(task); }

void wait_until_left(Task& task) {
  while (!the_helpers().has_left(task)) sched_yield();
}

}  // namespace native
