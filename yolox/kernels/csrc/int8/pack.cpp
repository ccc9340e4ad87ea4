// The input, planes of floats or bytes, becomes pixels of bytes.
#include "avx2.h"
#include "avx512.h"

namespace native {

// Where the values of channel i of a row of pixels are, `size` apart.
template <class T> inline const T* source(const Step& s, const T* input, long y, long i) {
  long block = s.size, width = s.out.width * block, plane = s.out.height * block * width;
  long from = s.order[i], channel = from / (block * block), row = from / block % block;
  return input + channel * plane + (y * block + row) * width + from % block;
}

template <class T> static void plainly(const Step& s, const T* input, uint8_t* out, long y) {
  for (long i = 0; i < s.out.channels; ++i) {
    const T* from = source(s, input, y, i);
    for (long x = 0; x < s.out.width; ++x) {
      float v = float(from[x * s.size]) * s.inverse[i] + s.zero[i];
      out[x * s.out.pixel + i] = uint8_t(std::nearbyint(std::min(255.0f, std::max(0.0f, v))));
    }
  }
}

#ifdef NATIVE_AVX512

constexpr long AT_ONCE = 16;  // pixels

inline __m512 sixteen_floats(const float* p) { return _mm512_loadu_ps(p); }
inline __m512 sixteen_floats(const uint8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p)));
}

// Sixteen pixels by sixteen channels: bytes of four channels are put into 32 bits, and four such vectors transposed. To
// make four pixels of a row neighbours in the end, place 4 l + j of the vectors holds pixel 4 j + l.
template <int BLOCK, class T>
inline void pixels(const Step& s, const T* const* from, uint8_t* out, long x, long c) {
  const __m512i places = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i zero = _mm512_setzero_si512(), most = _mm512_set1_epi32(255);
  __m512i four[4] = {zero, zero, zero, zero};
  long channels = std::min(V, s.out.channels - c);
#pragma GCC unroll 16
  for (int i = 0; i < V; ++i) {
    if (i >= channels) break;
    const T* p = from[i] + x * BLOCK;
    __m512 v = BLOCK == 1 ? _mm512_permutexvar_ps(places, sixteen_floats(p))
                          : _mm512_permutex2var_ps(sixteen_floats(p), _mm512_slli_epi32(places, 1),
                                                   sixteen_floats(p + 16));
    v = _mm512_fmadd_ps(v, _mm512_set1_ps(s.inverse[c + i]), _mm512_set1_ps(s.zero[c + i]));
    __m512i byte = _mm512_min_epi32(_mm512_max_epi32(_mm512_cvtps_epi32(v), zero), most);
    four[i / 4] = _mm512_or_si512(four[i / 4], _mm512_slli_epi32(byte, i % 4 * 8));
  }
  __m512i a = _mm512_unpacklo_epi32(four[0], four[1]), b = _mm512_unpackhi_epi32(four[0], four[1]);
  __m512i d = _mm512_unpacklo_epi32(four[2], four[3]), e = _mm512_unpackhi_epi32(four[2], four[3]);
  __m512i rows[4] = {_mm512_unpacklo_epi64(a, d), _mm512_unpackhi_epi64(a, d), _mm512_unpacklo_epi64(b, e),
                     _mm512_unpackhi_epi64(b, e)};
  for (long j = 0; j < 4; ++j)
    put_pixels<4>(out + (x + 4 * j) * s.out.pixel + c, s.out.pixel, rows[j], s.out.room - c, 4);
}

#elif defined(NATIVE_AVX2)

constexpr long AT_ONCE = 8;  // pixels

// Every BLOCKth of the values from p on.
template <int BLOCK> inline __m256 eight_of(const float* p) {
  if (BLOCK == 1) return _mm256_loadu_ps(p);
  __m256 even = _mm256_shuffle_ps(_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8), 0x88);
  return (__m256)_mm256_permute4x64_epi64((__m256i)even, 0xd8);
}

template <int BLOCK> inline __m256 eight_of(const uint8_t* p) {
  if (BLOCK == 1) return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p)));
  __m128i even = _mm_and_si128(_mm_loadu_si128((const __m128i*)p), _mm_set1_epi16(255));
  return _mm256_cvtepi32_ps(_mm256_cvtepu16_epi32(even));
}

// Eight pixels by sixteen channels: bytes of four channels are put into 32 bits, and four such vectors transposed.
template <int BLOCK, class T>
inline void pixels(const Step& s, const T* const* from, uint8_t* out, long x, long c) {
  const __m256i none = _mm256_setzero_si256(), pixel_by_pixel = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  __m256i four[4] = {none, none, none, none};
  long channels = std::min(V, s.out.channels - c);
  for (int k = 0; k < 4 && 4 * k < channels; ++k) {
    __m256i v[4] = {none, none, none, none};
    for (int i = 0; i < 4 && 4 * k + i < channels; ++i) {
      long n = 4 * k + i;
      v[i] = _mm256_cvtps_epi32(_mm256_fmadd_ps(eight_of<BLOCK>(from[n] + x * BLOCK), _mm256_set1_ps(s.inverse[c + n]),
                                                _mm256_set1_ps(s.zero[c + n])));
    }
    __m256i bytes = _mm256_packus_epi16(_mm256_packs_epi32(v[0], v[1]), _mm256_packs_epi32(v[2], v[3]));
    four[k] = _mm256_shuffle_epi8(bytes, pixel_by_pixel);
  }
  __m256i a = _mm256_unpacklo_epi32(four[0], four[1]), b = _mm256_unpackhi_epi32(four[0], four[1]);
  __m256i d = _mm256_unpacklo_epi32(four[2], four[3]), e = _mm256_unpackhi_epi32(four[2], four[3]);
  __m256i rows[4] = {_mm256_unpacklo_epi64(a, d), _mm256_unpackhi_epi64(a, d), _mm256_unpacklo_epi64(b, e),
                     _mm256_unpackhi_epi64(b, e)};
  uint8_t* to = out + x * s.out.pixel + c;
  for (long j = 0; j < 4; ++j) {
    put(to + j * s.out.pixel, (vb)_mm256_castsi256_si128(rows[j]), s.out.room - c);
    put(to + (j + 4) * s.out.pixel, (vb)_mm256_extracti128_si256(rows[j], 1), s.out.room - c);
  }
}

#endif

#if defined(NATIVE_AVX512) || defined(NATIVE_AVX2)

template <int BLOCK, class T> static void quickly(const Step& s, const T* input, uint8_t* out, long y) {
  for (long c = 0; c < s.out.channels; c += V) {
    const T* from[V] = {};
    for (long i = 0; i < std::min(V, s.out.channels - c); ++i) from[i] = source(s, input, y, c + i);
    for (long x = 0; x < s.out.width; x += AT_ONCE)  // the last ones overlap others
      pixels<BLOCK>(s, from, out, std::min(x, s.out.width - AT_ONCE), c);
  }
}

#endif

template <class T> static void pack_rows(const Step& s, const T* input, uint8_t* out, Range rows) {
  for (long y = rows.first; y < rows.last; ++y, out += s.out.row) {
#if defined(NATIVE_AVX512) || defined(NATIVE_AVX2)
    if (s.out.width >= AT_ONCE && s.size == 1) {
      quickly<1>(s, input, out, y);
      continue;
    }
    if (s.out.width >= AT_ONCE && s.size == 2 && y + 1 < s.out.height) {  // vectors end one value beyond the row
      quickly<2>(s, input, out, y);
      continue;
    }
#endif
    plainly(s, input, out, y);
  }
}

void pack(const Step& s, const Image& image, Range rows) {
  uint8_t* out = image.out + s.out.at + rows.first * s.out.row;
  if (image.is_byte[s.index]) pack_rows(s, (const uint8_t*)image.inputs[s.index], out, rows);
  else pack_rows(s, (const float*)image.inputs[s.index], out, rows);
}

}  // namespace native
