// Convolutions with ARM's NEON: its instructions multiply four bytes by four weights and add the products in 32 bits.
#include "portable.h"
#ifdef NATIVE_NEON

namespace native {

namespace {

// Four sums for each of 16 channels in order.
struct Sums {
  int32x4_t q[4];
};

INLINE inline int16x8_t words(int32x4_t low, int32x4_t high) {
  return vcombine_s16(vqmovn_s32(low), vqmovn_s32(high));
}

// A factor for each sum, an offset, and the nearest integer.
struct Scale {
  float32x4_t multiplier[4], offset[4];

  void take(const float* multipliers, const float* offsets) {
    for (int q = 0; q < 4; ++q) multiplier[q] = vld1q_f32(multipliers + 4 * q), offset[q] = vld1q_f32(offsets + 4 * q);
  }

  INLINE int16x8_t half(const Sums& sum, int i) const {
    auto one = [&](int q) { return vcvtnq_s32_f32(vfmaq_f32(offset[q], vcvtq_f32_s32(sum.q[q]), multiplier[q])); };
    return words(one(2 * i), one(2 * i + 1));
  }
};

// How sums of channels c ... c + 16 become bytes: by the table of an activation.
struct ActivationTables {
  static constexpr bool one_by_one = false;
  uint8x16x4_t start[2], rise[2];  // the low bytes of 64 numbers, the high ones
  int16x8_t factor[2], zero[2], bits, shift;
  uint16x8_t limit;
  Scale scale;

  static void split(const int16_t* from, uint8x16x4_t* to) {
    for (int i = 0; i < 4; ++i) {
      uint8x16x2_t bytes = vld2q_u8((const uint8_t*)(from + 16 * i));
      to[0].val[i] = bytes.val[0], to[1].val[i] = bytes.val[1];
    }
  }

  ActivationTables(const Step& s, long c) {
    const ActivationTable& table = *s.activation_table;
    split(table.start, start);
    split(table.rise, rise);
    for (int i = 0; i < 2; ++i)
      factor[i] = vld1q_s16(table.factor + c + 8 * i), zero[i] = vld1q_s16(table.zero + c + 8 * i);
    limit = vdupq_n_u16(uint16_t((64 << table.bits) - 1));
    bits = vdupq_n_s16(int16_t(-table.bits));
    shift = vdupq_n_s16(int16_t(-table.shift));
    scale.take(table.multiplier + c, table.offset + c);
  }

  INLINE uint8x16_t bytes(const Sums& sum) const {
    int16x8_t z[2] = {scale.half(sum, 0), scale.half(sum, 1)};
    uint16x8_t size[2], piece[2];
    for (int i = 0; i < 2; ++i) {
      size[i] = vminq_u16(vreinterpretq_u16_s16(vabsq_s16(z[i])), limit);
      piece[i] = vshlq_u16(size[i], bits);
    }
    const uint8x16_t at = vcombine_u8(vmovn_u16(piece[0]), vmovn_u16(piece[1]));
    auto looked_up = [&](const uint8x16x4_t* table) INLINE {
      return vzipq_u8(vqtbl4q_u8(table[0], at), vqtbl4q_u8(table[1], at));
    };
    const uint8x16x2_t first = looked_up(start), slope = looked_up(rise);
    uint8x8_t half[2];
    for (int i = 0; i < 2; ++i) {
      int16x8_t dent = vqrdmulhq_s16(vreinterpretq_s16_u16(size[i]), vreinterpretq_s16_u8(slope.val[i]));
      int16x8_t y = vsubq_s16(vmaxq_s16(z[i], vdupq_n_s16(0)), vreinterpretq_s16_u8(first.val[i]));
      y = vqaddq_s16(vqrdmulhq_s16(vsubq_s16(y, dent), factor[i]), zero[i]);
      half[i] = vqmovun_s16(vshlq_s16(y, shift));
    }
    return vcombine_u8(half[0], half[1]);
  }
};

// Bytes are rounded from a factor times the sum plus an offset, and nothing else.
struct Linear {
  static constexpr bool one_by_one = false;
  Scale scale;

  Linear(const Step& s, long c) { scale.take(s.multiplier + c, s.offset + c); }

  INLINE uint8x16_t bytes(const Sums& sum) const {
    return vcombine_u8(vqmovun_s16(scale.half(sum, 0)), vqmovun_s16(scale.half(sum, 1)));
  }
};

// All else, as on any machine.
struct OneByOne {
  static constexpr bool one_by_one = true;

  OneByOne(const Step&, long) {}
};

template <class Finish>
INLINE inline void finished(const Step& s, const Image& image, const Finish& f, const Sums& sum, long y, long x,
                            long c) {
  if constexpr (Finish::one_by_one) {
    vi all;
    std::memcpy(&all, sum.q, sizeof all);
    finish(s, image, all, y, x, c);
  } else {
    put(image.out + s.out.at + y * s.out.row + x * s.out.pixel + c, (vb)f.bytes(sum), s.out.room - c);
  }
}

#ifdef __ARM_FEATURE_MATMUL_INT8

INLINE inline int32x4_t plus_products(int32x4_t sum, uint8x16_t bytes, int8x16_t weights) {
  return vusdotq_s32(sum, bytes, weights);
}

// What sums begin with.
INLINE inline Sums first_sums(const int8_t*, long, long) { return {}; }

#else  // both factors have a sign there: bytes lose 128, and sums begin with 128 times their weights instead

INLINE inline int32x4_t plus_products(int32x4_t sum, uint8x16_t bytes, int8x16_t weights) {
  return vdotq_s32(sum, vreinterpretq_s8_u8(veorq_u8(bytes, vdupq_n_u8(128))), weights);
}

inline Sums first_sums(const int8_t* weight, long count, long step) {
  Sums sum = {};
  for (; count > 0; --count, weight += step)
    for (int q = 0; q < 4; ++q) sum.q[q] = vdotq_s32(sum.q[q], vdupq_n_s8(1), vld1q_s8(weight + 16 * q));
  for (int q = 0; q < 4; ++q) sum.q[q] = vshlq_n_s32(sum.q[q], 7);
  return sum;
}

#endif

// 16 channels from c on, vector n of the N whose weights lie side by side.
template <class Finish> struct Dense {
  const Step& s;
  const Image& image;
  long c, step;
  const int8_t* weight;
  Sums first;
  Finish finish;

  Dense(const Step& s, const Image& image, long block, long n, long N)
      : s(s), image(image), c(block + n * V), step(64 * N), finish(s, c) {
    const long count = s.height * s.width * ((s.in.channels + 3) / 4);
    weight = s.weight + 4 * block * count + n * 64;
    first = first_sums(weight, count, step);
  }

  template <int M> INLINE void tile(const uint8_t* in, long y, long x) const {
    Sums sum[M];
    unrolled<M>([&](auto m) INLINE { sum[m] = first; });
    const int8_t* w = weight;
    for (long tap = 0; tap < s.height * s.width; ++tap) {
      const uint8_t* pixel = window_byte(s, in, y, x, tap);
      for (long k = 0; k < s.in.channels; k += 4, w += step) {
        int8x16_t four[4];
        unrolled<4>([&](auto q) INLINE { four[q] = vld1q_s8(w + 16 * q); });
        unrolled<M>([&](auto m) INLINE {
          uint32_t bits;
          std::memcpy(&bits, pixel + m * s.stride * s.in.pixel + k, sizeof bits);
          const uint8x16_t bytes = vreinterpretq_u8_u32(vdupq_n_u32(bits));
          unrolled<4>([&](auto q) INLINE { sum[m].q[q] = plus_products(sum[m].q[q], bytes, four[q]); });
        });
      }
    }
    unrolled<M>([&](auto m) INLINE { finished(s, image, finish, sum[m], y, x + m, c); });
  }

  void rows(Range rows) const {
    const uint8_t* in = first_window(s, image);
    for (long y = rows.first; y < rows.last; ++y) {
      long x = 0;
      for (; x + 4 <= s.out.width; x += 4) tile<4>(in, y, x);
      for (; x < s.out.width; ++x) tile<1>(in, y, x);
    }
  }
};

template <class Finish> void dense_rows(const Step& s, const Image& image, Range rows) {
  for (long c = 0, N; c < s.out.channels; c += N * V) {
    N = vectors_from(s, c);
    for (long n = 0; n < N; ++n) Dense<Finish>(s, image, c, n, N).rows(rows);
  }
}

// Bytes and weights of 16 channels have 16 bits when they are multiplied, and their products 32.
template <class Finish> void depthwise_rows(const Step& s, const Image& image, Range rows) {
  const long channels = (s.in.channels + V - 1) / V * V;
  for (long c = 0; c < s.out.channels; c += V) {
    const Finish finish(s, c);
    const uint8_t* in = first_window(s, image) + c;
    for (long y = rows.first; y < rows.last; ++y)
      for (long x = 0; x < s.out.width; ++x) {
        Sums sum = {};
        for (long tap = 0; tap < s.height * s.width; ++tap) {
          const uint8x16_t bytes = vld1q_u8(window_byte(s, in, y, x, tap));
          const int8x16_t weight = vld1q_s8(s.weight + tap * channels + c);
          const int16x8_t b[2] = {vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(bytes))),
                                  vreinterpretq_s16_u16(vmovl_high_u8(bytes))};
          const int16x8_t w[2] = {vmovl_s8(vget_low_s8(weight)), vmovl_high_s8(weight)};
          for (int i = 0; i < 2; ++i) {
            sum.q[2 * i] = vmlal_s16(sum.q[2 * i], vget_low_s16(b[i]), vget_low_s16(w[i]));
            sum.q[2 * i + 1] = vmlal_high_s16(sum.q[2 * i + 1], b[i], w[i]);
          }
        }
        finished(s, image, finish, sum, y, x, c);
      }
  }
}

}  // namespace

void dense(const Step& s, const Image& image, Range rows) {
  if (s.linear) return dense_rows<Linear>(s, image, rows);
  s.activation_table ? dense_rows<ActivationTables>(s, image, rows) : dense_rows<OneByOne>(s, image, rows);
}

void depthwise(const Step& s, const Image& image, Range rows) {
  if (s.linear) return depthwise_rows<Linear>(s, image, rows);
  s.activation_table ? depthwise_rows<ActivationTables>(s, image, rows) : depthwise_rows<OneByOne>(s, image, rows);
}

}  // namespace native
#endif
