// Kernels as a program calls them: with their arguments in memory, as Python's ctypes lays out a structure of them.
#pragma once
#include <cstring>
#include <tuple>

namespace {

template <class T>
T next_argument(const char* arguments, long& at) {
  at = (at + long(alignof(T)) - 1) / long(alignof(T)) * long(alignof(T));
  T value;
  std::memcpy(&value, arguments + at, sizeof value);
  at += sizeof value;
  return value;
}

template <class... A>
int invoke(int (*kernel)(A...), const char* arguments) {
  long at = 0;
  return std::apply(kernel, std::tuple<A...>{next_argument<A>(arguments, at)...});  // braces: from left to right
}

}  // namespace

#define INVOKED(KERNEL) \
  extern "C" int invoke_##KERNEL(const char* arguments) { return invoke(KERNEL, arguments); }
