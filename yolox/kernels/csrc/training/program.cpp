// A program: calls of kernels one after the other.
struct Call {
  int (*invoke)(const char*);
  const char* arguments;
};

// Returns 1, or 0 where the memory did not suffice for one of them.
extern "C" int program_run(const Call* calls, long count) {
  for (long i = 0; i < count; ++i)
    if (!calls[i].invoke(calls[i].arguments)) return 0;
  return 1;
}
