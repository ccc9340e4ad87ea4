// Runs the steps for a batch: several images side by side, each by a team of threads.
#include "team.h"
#include <cstdlib>
#include <mutex>
#include <new>
#include <sched.h>

namespace native {

struct Batch {
  int64_t images, inputs, outputs;
  const void* const* input;              // of the whole batch
  const int64_t *input_bytes, *is_byte;  // of one image; whether uint8
  float* const* output;
  const int64_t* output_floats;          // of one image
  int64_t streams, team;
  double* seconds;                       // null, or [steps], to which the first thread's time of each is added
};

namespace {

// An image at a time, and those who compute it. Its memory is kept from call to call: whoever comes late may still read
// it.
struct Stream {
  struct Free {
    void operator()(uint8_t* p) const { std::free(p); }
  };
  std::unique_ptr<uint8_t, Free> arena;
  std::vector<const void*> inputs;
  std::vector<int64_t> is_byte;
  std::vector<float*> outputs;
  Team team;
  std::atomic<uint64_t> epoch{0};  // the number of the call, and of its image that is computed; see `follow`

  Stream(Plan& plan, long size)
      : arena((uint8_t*)std::aligned_alloc(64, plan.arena_bytes)), inputs(plan.inputs), is_byte(plan.inputs),
        outputs(plan.outputs), team(plan, size) {
    if (!arena) throw std::bad_alloc();
    std::memset(arena.get(), 0, plan.arena_bytes);
    team.image = {arena.get(), inputs.data(), is_byte.data(), outputs.data(), nullptr, nullptr};
  }
};

constexpr int64_t LOOK = 50000;                         // ns
constexpr uint64_t IMAGES = 24, OVER = (1 << IMAGES) - 1;  // bits of an epoch for the image; no image has this number

}  // namespace

// One call at a time.
class Session final : public Task {
  Plan& plan;
  std::vector<std::unique_ptr<Stream>> streams;
  Batch batch{};
  uint64_t call = 0;
  std::atomic<long> next{0}, leading{0};  // image; threads that lead a stream
  Signal ended;
  std::atomic<int> caller_cpu{-1};

  void lead(long index) {
    Stream& stream = *streams[index];
    for (long number = 0;;) {
      const long n = next.fetch_add(1);
      if (n >= batch.images) break;
      if (index == 0) caller_cpu.store(sched_getcpu(), std::memory_order_relaxed);
      for (long i = 0; i < batch.inputs; ++i) {
        stream.inputs[i] = (const uint8_t*)batch.input[i] + n * batch.input_bytes[i];
        stream.is_byte[i] = batch.is_byte[i];
      }
      for (long i = 0; i < batch.outputs; ++i) stream.outputs[i] = batch.output[i] + n * batch.output_floats[i];
      const uint64_t bits = Team::epoch_bits(plan.crowded(), batch.seconds);
      const uint64_t epoch = call << IMAGES | uint64_t(number++) << 2 | bits;
      stream.epoch.store(epoch, std::memory_order_release);
      stream.team.work(0, epoch, index == 0 ? batch.seconds : nullptr);
    }
    stream.epoch.store(call << IMAGES | OVER, std::memory_order_release);
  }

  // Helps with the images of one call; another call may have begun by the time a thread looks. False: it should sleep.
  bool follow(Stream& stream, long member, uint64_t of_call) {
    uint64_t last = 0;
    for (int64_t since = now_ns();;) {
      const uint64_t epoch = stream.epoch.load(std::memory_order_acquire);
      if (epoch >> IMAGES > of_call || epoch == (of_call << IMAGES | OVER)) return true;
      if (epoch >> IMAGES == of_call && epoch != last) {
        const int caller = caller_cpu.load(std::memory_order_relaxed);
        // on one core two threads are slower than one
        if (sched_getcpu() == caller && !stay_off(caller)) return false;
        stream.team.work(member, last = epoch, nullptr);
        since = now_ns();
      } else if (now_ns() - since > LOOK) {
        const uint32_t seen = ended.value();
        if (stream.epoch.load() == epoch) ended.sleep(seen, 200000);
      }
      pause();
    }
  }

 public:
  const long num_streams, team;

  Session(Plan& plan, long num_streams, long team) : plan(plan), num_streams(num_streams), team(team) {
    for (long i = 0; i < num_streams; ++i) streams.emplace_back(new Stream(plan, team));
  }

  void run(const Batch& given) {
    batch = given;
    ++call;
    next.store(0);
    leading.store(0);
    const long helpers = num_streams * team - 1;
    if (helpers) offer(*this, helpers);
    lead(0);
    if (!helpers) return;
    withdraw(*this);
    for (int64_t since = now_ns(); leading.load(std::memory_order_acquire) > 0; pause()) {
      const uint32_t seen = ended.value();
      if (now_ns() - since > LOOK && leading.load() > 0) ended.sleep(seen, 1000000);
    }
    for (auto& stream : streams) stream->epoch.store(call << IMAGES | OVER, std::memory_order_release);
    ended.raise();
  }

  uint64_t joins(long member) override {
    leading.fetch_add(member % team == 0);
    return call;
  }

  bool help(long member, uint64_t ticket) override {
    if (member % team == 0) {
      stay_off(-1);
      lead(member / team);
      leading.fetch_sub(1, std::memory_order_release);
      ended.raise();
      return true;
    }
    return follow(*streams[member / team], member % team, ticket);
  }
};

// A program that can be run, by several callers at once.
class Network {
  Plan plan;
  std::mutex lock;
  std::vector<std::unique_ptr<Session>> idle;
  size_t sessions = 0;

  std::unique_ptr<Session> session(long streams, long team) {
    {
      std::lock_guard<std::mutex> guard(lock);
      for (auto& one : idle)
        if (one->num_streams == streams && one->team == team) {
          std::swap(one, idle.back());
          std::unique_ptr<Session> found = std::move(idle.back());
          idle.pop_back();
          return found;
        }
      idle.reserve(++sessions);  // so that none is lost when it is given back
    }
    return std::unique_ptr<Session>(new Session(plan, streams, team));
  }

 public:
  Network(const Step* steps, long count, long inputs, long outputs, int64_t arena_bytes)
      : plan(steps, count, arena_bytes) {
    plan.inputs = inputs, plan.outputs = outputs;
  }

  ~Network() {
    for (auto& one : idle) wait_until_left(*one);
  }

  void run(const Batch& batch) {
    std::unique_ptr<Session> used = session(batch.streams, batch.team);
    used->run(batch);
    std::lock_guard<std::mutex> guard(lock);
    idle.push_back(std::move(used));
  }
};

}  // namespace native

// Returns null where there is no memory. The steps stay the caller's, and must live as long.
extern "C" void* native_create(const native::Step* steps, long count, long inputs, long outputs, int64_t arena_bytes) {
  try {
    return new native::Network(steps, count, inputs, outputs, arena_bytes);
  } catch (const std::exception&) {
    return nullptr;
  }
}

extern "C" void native_destroy(void* network) { delete (native::Network*)network; }

// Returns 0, or 1 where there is no memory.
extern "C" long native_run(void* network, const native::Batch* batch) {
  try {
    ((native::Network*)network)->run(*batch);
    return 0;
  } catch (const std::exception&) {
    return 1;
  }
}

// For a test that the structures are the same in Python.
extern "C" void native_bytes(long* step, long* table, long* batch) {
  *step = sizeof(native::Step), *table = sizeof(native::ActivationTable), *batch = sizeof(native::Batch);
}

extern "C" long native_instructions() {  // numbers as in bindings.py
#if defined(NATIVE_TILES)
  return 5;
#elif defined(NATIVE_NEON)
  return 4;
#elif defined(NATIVE_AVX512)
  return 3;
#elif defined(NATIVE_AVX2) && defined(__AVXVNNI__)
  return 2;
#elif defined(NATIVE_AVX2)
  return 1;
#else
  return 0;
#endif
}

// Asks the system for the matrix unit; 0 where it refuses.
extern "C" long native_may_use_tiles() {
#ifdef NATIVE_TILES
  return native::may_use_tiles();
#else
  return 0;
#endif
}
