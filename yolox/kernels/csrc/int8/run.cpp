// Runs the steps for a batch: several images side by side, each by a team of threads.
#include <atomic>
#include <chrono>
#include <thread>
#include "steps.h"

namespace native {

// What a team shares. Its threads wait for each other; they soon arrive, so they do not sleep.
struct Shared {
  alignas(64) std::atomic<long> arrived{0};
  alignas(64) std::atomic<long> round{0};
  long image = 0;  // that they work on

  void wait(long size) {
    if (size == 1) return;
    long now = round.load();
    if (arrived.fetch_add(1) + 1 == size) {
      arrived.store(0);
      round.store(now + 1);
      return;
    }
    for (long spins = 0; round.load() == now; ++spins)
      if (spins > 2000) std::this_thread::yield();
  }
};

static void execute(const Step& step, const Image& image, Team team) {
  static Work* const work[] = {border, pack, dense, depthwise, pool, upsample, add, unary, arithmetic, copy};
  work[step.kind](step, image, team);
}

struct Batch {
  long images, inputs, outputs;
  const void* const* input;        // of the whole batch
  const int64_t *input_bytes, *is_byte;  // of one image; whether uint8
  float* const* output;
  const int64_t* output_floats;    // of one image
  uint8_t* arena;                  // `arena_bytes` for each stream
  int64_t arena_bytes, streams, team;
  double* seconds;                 // null, or [steps], to which the time of the first thread's steps is added
};

// A stream takes the next image as soon as it has done one: cores are not equally fast when others use them too.
static void run_images(const Step* steps, long count, const Batch& b, long stream, Team team, Shared& shared,
                       std::atomic<long>& next) {
  std::vector<const void*> inputs(b.inputs);
  std::vector<float*> outputs(b.outputs);
  Image image{b.arena + stream * b.arena_bytes, inputs.data(), b.is_byte, outputs.data()};
  auto now = std::chrono::steady_clock::now;
  for (;;) {
    if (team.member == 0) shared.image = next.fetch_add(1);
    shared.wait(team.size);
    long n = shared.image;
    if (n >= b.images) return;
    for (long i = 0; i < b.inputs; ++i) inputs[i] = (const uint8_t*)b.input[i] + n * b.input_bytes[i];
    for (long i = 0; i < b.outputs; ++i) outputs[i] = b.output[i] + n * b.output_floats[i];
    for (long i = 0; i < count; ++i) {
      bool timed = b.seconds && stream == 0 && team.member == 0;
      auto start = timed ? now() : std::chrono::steady_clock::time_point();
      execute(steps[i], image, team);
      if (steps[i].kind != BORDER) shared.wait(team.size);
      if (timed) b.seconds[i] += std::chrono::duration<double>(now() - start).count();
    }
  }
}

}  // namespace native

extern "C" void native_run(const native::Step* steps, long count, const native::Batch* batch) {
  native::Batch b = *batch;
  std::vector<native::Shared> shared(b.streams);
  std::atomic<long> next{0};
#pragma omp parallel num_threads(b.streams * b.team)
  {
    long threads = omp_get_num_threads(), me = omp_get_thread_num();
    if (threads == b.streams * b.team) {
      native::run_images(steps, count, b, me / b.team, {me % b.team, b.team}, shared[me / b.team], next);
    } else {  // fewer threads than were asked for: one of them does it all
#pragma omp single
      native::run_images(steps, count, b, 0, {0, 1}, shared[0], next);
    }
  }
}

// For a test that the structures are the same in Python.
extern "C" void native_bytes(long* step, long* curve, long* batch) {
  *step = sizeof(native::Step), *curve = sizeof(native::Curve), *batch = sizeof(native::Batch);
}

extern "C" long native_instructions() {  // numbers as in bindings.py
#if defined(NATIVE_AVX512)
  return 3;
#elif defined(NATIVE_AVX2) && defined(__AVXVNNI__)
  return 2;
#elif defined(NATIVE_AVX2)
  return 1;
#else
  return 0;
#endif
}
