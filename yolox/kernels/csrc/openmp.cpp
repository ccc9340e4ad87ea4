// OpenMP for one thread. The kernels are linked with no OpenMP library, as a process must not have two: they find the
// functions of PyTorch's one, which is opened before them. Where a process has none, these are found instead.
extern "C" {
__attribute__((weak)) void GOMP_parallel(void (*region)(void*), void* data, unsigned, unsigned) { region(data); }
__attribute__((weak)) void GOMP_barrier() {}
__attribute__((weak)) bool GOMP_single_start() { return true; }
__attribute__((weak)) int omp_get_max_threads() { return 1; }
__attribute__((weak)) int omp_get_num_threads() { return 1; }
__attribute__((weak)) int omp_get_thread_num() { return 0; }
}
