// Copies of tensors: from one layout to another, from one type to another, into a part of a wider tensor; sums of two
// tensors; zeros.
#include "normalisation.h"
#include "program.h"

namespace {

enum Type : long { FLOAT32, BFLOAT16, FLOAT64 };

// Six dimensions, the last one of the shortest strides; sizes and strides are in numbers. Without a source the target
// becomes zero; `added` may be null.
struct Copy {
  const void *source, *added;
  void* target;
  long source_type, target_type;
  long size[6], source_stride[6], added_stride[6], target_stride[6];
};

constexpr long PIECE = 4096;  // numbers that a thread copies at once

inline double get(const double* p) { return *p; }
inline void set(float* p, float value) { *p = value; }
inline void set(float* p, double value) { *p = float(value); }
inline void set(double* p, double value) { *p = value; }

// As PyTorch does it: small numbers stay, which the processor's instruction takes for zero.
inline void set(bf16* p, float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  p->bits = uint16_t((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
}

template <class T>
void set(T* target, const T* source) {
  *target = *source;
}

template <class S, class T>
void set(T* target, const S* source) {
  set(target, get(source));
}

template <class S, class T>
void row(const S* source, long step, const S* added, long added_step, T* target, long target_step, long count) {
  const bool dense = step == 1 && target_step == 1;
  if (!source && target_step == 1) {
    std::memset((void*)target, 0, count * sizeof(T));
  } else if (!source) {
    for (long i = 0; i < count; ++i) target[i * target_step] = T{};
  } else if (dense && !added && std::is_same<S, T>::value) {
    std::memcpy((void*)target, (const void*)source, count * sizeof(T));
  } else if (dense && !added) {
#pragma omp simd
    for (long i = 0; i < count; ++i) set(target + i, get(source + i));
  } else if (dense && added_step == 1) {
#pragma omp simd
    for (long i = 0; i < count; ++i) set(target + i, get(source + i) + get(added + i));
  } else if (added) {
    for (long i = 0; i < count; ++i)
      set(target + i * target_step, get(source + i * step) + get(added + i * added_step));
  } else {
    for (long i = 0; i < count; ++i) set(target + i * target_step, source + i * step);
  }
}

// A thread takes some rows of the last dimension but one, or a piece of a long row.
template <class S, class T>
void copy(const Copy& c) {
  const long rows = c.size[4], count = c.size[5], outer = c.size[0] * c.size[1] * c.size[2] * c.size[3];
  const long together = std::max(1L, std::min(rows, PIECE / std::max(count, 1L))), pieces = (count + PIECE - 1) / PIECE;
  const long groups = (rows + together - 1) / together;
#pragma omp parallel for if (outer * rows * count > 4 * PIECE)
  for (long n = 0; n < outer * groups * pieces; ++n) {
    const long first = n % pieces * PIECE, row_number = n / pieces % groups * together;
    long at[4], rest = n / pieces / groups;
    for (int d = 3; d >= 0; rest /= c.size[d--]) at[d] = rest % c.size[d];
    auto place = [&](const long* stride) {
      long offset = row_number * stride[4] + first * stride[5];
      for (int d = 0; d < 4; ++d) offset += at[d] * stride[d];
      return offset;
    };
    const S *source = (const S*)c.source, *added = (const S*)c.added;
    T* target = (T*)c.target + place(c.target_stride);
    if (source) source += place(c.source_stride);
    if (added) added += place(c.added_stride);
    for (long r = 0; r < std::min(together, rows - row_number); ++r)
      row<S, T>(source ? source + r * c.source_stride[4] : source, c.source_stride[5],
                added ? added + r * c.added_stride[4] : added, c.added_stride[5], target + r * c.target_stride[4],
                c.target_stride[5], std::min(PIECE, count - first));
  }
}

template <class S>
void copy_from(const Copy& c) {
  if (c.target_type == FLOAT32) copy<S, float>(c);
  if (c.target_type == BFLOAT16) copy<S, bf16>(c);
  if (c.target_type == FLOAT64) copy<S, double>(c);
}

}  // namespace

LAYOUT(Copy, Copy, AT(Copy, source), AT(Copy, added), AT(Copy, target), AT(Copy, source_type), AT(Copy, target_type),
       AT(Copy, size), AT(Copy, source_stride), AT(Copy, added_stride), AT(Copy, target_stride))

extern "C" int copy_numbers(Copy c) {
  if (c.source_type == FLOAT32) copy_from<float>(c);
  if (c.source_type == BFLOAT16) copy_from<bf16>(c);
  if (c.source_type == FLOAT64) copy_from<double>(c);
  return 1;
}

INVOKED(copy_numbers)
