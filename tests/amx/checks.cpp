// A program without an operating system: products of tiles are those of the model, and convolutions with tiles those of
// the AVX-512 kernels. It writes what it found to the port 0xe9, which Bochs prints.
#include "int8/finish.h"
#include <initializer_list>

using namespace native;

static void say(const char* text) {
  for (; *text; ++text) asm volatile("outb %0, %1" ::"a"(*text), "Nd"(uint16_t(0xe9)));
}

static void say(long value) {
  if (value > 9) say(value / 10);
  const char digit[2] = {char('0' + value % 10), 0};
  say(digit);
}

extern "C" {
void* memcpy(void* to, const void* from, size_t count) {
  void* next = to;
  asm volatile("rep movsb" : "+D"(next), "+S"(from), "+c"(count)::"memory");
  return to;
}
void* memset(void* to, int value, size_t count) {
  void* next = to;
  asm volatile("rep stosb" : "+D"(next), "+c"(count) : "a"(value) : "memory");
  return to;
}
int memcmp(const void* left, const void* right, size_t count) {
  const uint8_t *a = (const uint8_t*)left, *b = (const uint8_t*)right;
  for (size_t i = 0; i < count; ++i)
    if (a[i] != b[i]) return a[i] - b[i];
  return 0;
}
void abort() {
  say("aborted\nchecks end\n");
  for (;;) asm volatile("hlt");
}
void report_exception(long vector, const long* stack) {
  say("exception "), say(vector);
  for (int i = 0; i < 2; ++i) say(" "), say(stack[i]);
  say("\nchecks end\n");
}
long syscall(long, ...) { return 0; }  // tiles are granted
int abs(int value) { return value < 0 ? -value : value; }
float erfcf(float) { abort(); return 0; }  // of GELU, which is not checked
void model_product(const void* shapes, void* sums, const void* left, const void* right);
}

namespace {

uint64_t state = 1;

uint32_t random() {
  state = state * 6364136223846793005u + 1442695040888963407u;
  return uint32_t(state >> 33);
}

long up(long number, long unit) { return (number + unit - 1) / unit * unit; }

bool product_is_right(bool largest) {
  struct alignas(64) {
    uint8_t palette = 1, first = 0, none[14] = {};
    uint16_t bytes[16] = {};
    uint8_t rows[16] = {};
  } shapes;
  alignas(64) static uint8_t sums[2][1024], left[1024], right[1024];
  const long rows = 1 + random() % 16, depth = 1 + random() % 16, columns = 1 + random() % 16;
  shapes.rows[0] = shapes.rows[1] = uint8_t(rows), shapes.rows[2] = uint8_t(depth);
  shapes.bytes[0] = shapes.bytes[2] = uint16_t(4 * columns), shapes.bytes[1] = uint16_t(4 * depth);
  for (int i = 0; i < 1024; ++i) {
    sums[0][i] = sums[1][i] = uint8_t(random());
    left[i] = largest ? 255 : uint8_t(random()), right[i] = largest ? 128 : uint8_t(random());
  }
  asm volatile("" ::"r"(&shapes) : "memory");
  _tile_loadconfig(&shapes);
  _tile_loadd(0, sums[0], 64);
  _tile_loadd(1, left, 64);
  _tile_loadd(2, right, 64);
  _tile_dpbusd(0, 1, 2);
  _tile_stored(0, sums[0], 64);
  asm volatile("" ::: "memory");
  model_product(&shapes, sums[1], left, right);
  return memcmp(sums[0], sums[1], sizeof sums[0]) == 0;
}

constexpr long HALF = 2 << 20, VALUES = 1 << 18;
alignas(64) uint8_t arena[2][2 * HALF];  // what is read in the first half, what is written in the second
alignas(64) int8_t weight[1 << 22], packed[2][1 << 22];
alignas(64) float multiplier[1024], offset[1024], result[2][VALUES];
alignas(64) int16_t factor[1024], zero[1024];

// Weights [out, in, taps] as packing.py arranges them: `most` vectors of outputs side by side, inputs in whole `unit`s.
void pack(int8_t* to, long outs, long ins, long taps, long most, long unit) {
  for (long first = 0, vectors; first < outs; first += 16 * vectors) {
    const long left = (outs - first + 15) / 16;
    vectors = most >= 4 && left >= 4 ? 4 : left >= 2 ? 2 : 1;
    for (long tap = 0; tap < taps; ++tap)
      for (long k = 0; k < up(ins, unit); k += 4)
        for (long i = 0; i < 64 * vectors; ++i) {
          const long out = first + i / 4, in = k + i % 4;
          *to++ = out < outs && in < ins ? weight[(out * ins + in) * taps + tap] : 0;
        }
  }
}

long tile_depth(long run) {
  const long fours = run / 4;
  long count = (fours + 15) / 16;
  while (fours % count) ++count;
  return fours / count >= 8 ? fours / count : 0;
}

struct Case {
  long height, width, ins, outs, size, stride, border, ending;
};

bool convolution_is_right(const Case& c) {
  const long taps = c.size * c.size, pixel = up(c.ins, 16), row = (c.width + 2 * c.border) * pixel;
  const long height = (c.height - 1) / c.stride + 1, width = (c.width - 1) / c.stride + 1, to = up(c.outs, 16);
  static ActivationTable table;
  for (long i = 0; i < c.outs * c.ins * taps; ++i) weight[i] = int8_t(random());
  for (long i = 0; i < 1024; ++i) {
    multiplier[i] = float(1 + random() % 100) * 1e-5f, offset[i] = float(random() % 200);
    factor[i] = int16_t(1000 + random() % 20000), zero[i] = int16_t(random() % 500);
  }
  for (int i = 0; i < 64; ++i) table.start[i] = int16_t(random() % 300), table.rise[i] = int16_t(random() % 600 - 300);
  table.bits = 5, table.shift = 3;
  table.multiplier = multiplier, table.offset = offset, table.factor = factor, table.zero = zero;
  Step s{};
  s.kind = DENSE, s.height = s.width = c.size, s.stride = c.stride, s.dilation = 1, s.above = s.before = c.size / 2;
  s.in = {4096 + c.border * (row + pixel), row, pixel, c.height, c.width, c.ins, pixel};
  s.out = {HALF, width * to, to, height, width, c.outs, to};
  s.multiplier = multiplier, s.offset = offset;
  if (c.ending == 0) s.linear = 1;
  if (c.ending == 1) s.activation_table = &table;
  if (c.ending == 2) s.to_matrix = 1, s.choice = SIGMOID, s.out.room = 0, s.result = {ARENA, 0, height * width, c.outs};
  s.tiles = tile_depth(pixel * c.size);
  pack(packed[0], c.outs, c.ins, taps, 4, 4);
  pack(packed[1], c.outs, c.ins, taps, 2, 16);
  for (long i = 0; i < HALF; ++i) arena[0][i] = arena[1][i] = uint8_t(random());
  for (int tiles = 0; tiles < 2; ++tiles) {
    memset(arena[tiles] + HALF, 0, HALF);
    memset(result[tiles], 0, sizeof result[tiles]);
    Image image{};
    image.arena = image.out = arena[tiles], image.result = result[tiles];
    Step one = s;
    one.weight = packed[tiles];
    if (!tiles) one.tiles = 0;
    dense(one, image, {0, height / 2});
    dense(one, image, {height / 2, height});
  }
  long written = 0, different = 0;
  for (long i = 0; i < HALF; ++i) {
    written += arena[0][HALF + i] != 0, different += arena[0][HALF + i] != arena[1][HALF + i];
    if (i < VALUES) written += result[0][i] != 0, different += result[0][i] != result[1][i];
  }
  return s.tiles && written && !different;
}

}  // namespace

extern "C" void run_checks() {
  say("checks begin\n");
  long right = 0, all = 0;
  for (int i = 0; i < 300; ++i, ++all) right += product_is_right(i % 3 == 0);
  say("products of tiles as in the model: "), say(right), say(" of "), say(all), say("\n");
  right = all = 0;
  const long channels[][2] = {{64, 64}, {32, 16}, {128, 33}, {40, 96}, {72, 20}, {130, 5}, {256, 100}};
  for (const auto& pixels : {std::pair(1L, 1L), {7L, 5L}, {9L, 16L}, {5L, 23L}, {6L, 40L}})
    for (const auto& count : channels)
      for (const auto& window : {std::pair(1L, 1L), {3L, 1L}, {3L, 2L}, {1L, 2L}})
        for (long more = 0; more < 2; ++more, ++all)
          right += convolution_is_right({pixels.first, pixels.second, count[0], count[1], window.first, window.second,
                                         window.first / 2 + more, all % 3});
  say("convolutions as with AVX-512: "), say(right), say(" of "), say(all), say("\nchecks end\n");
}
