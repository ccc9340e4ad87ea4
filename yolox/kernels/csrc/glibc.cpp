// The C++ library that is linked in reads this variable, which glibc has since 2.32, to save atomic operations while
// there is one thread. With one of our own, which always says "there may be more", the kernels also run on earlier
// ones.
extern "C" {
extern __attribute__((visibility("hidden"))) char __libc_single_threaded;
char __libc_single_threaded = 0;
}
