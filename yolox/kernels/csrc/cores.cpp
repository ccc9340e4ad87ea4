#include "cores.h"
#include <sched.h>
#include <unistd.h>

bool stay_off(int core) {
  static thread_local int off = -1;
  if (core < 0 && off < 0) return true;
  cpu_set_t cores;  // those of the process, as they are now
  if (sched_getaffinity(getpid(), sizeof cores, &cores)) return false;
  if (core >= 0 && core < CPU_SETSIZE) CPU_CLR(core, &cores);
  if (CPU_COUNT(&cores) == 0 || sched_setaffinity(0, sizeof cores, &cores)) return false;
  off = core;
  return true;
}
