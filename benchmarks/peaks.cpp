// Small loops that do nothing but what a processor is fastest at. Each returns how much it did.
#include <immintrin.h>

#include <cstdint>

namespace {
constexpr int kSums = 12;  // as many chains as hide the latency of two units
volatile int sink;

#if defined(__AVX512F__)
template <class Sum, class Step> int64_t chains(int64_t rounds, Sum zero, Step step) {
    Sum sums[kSums];
    for (Sum& sum : sums) sum = zero;
    for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
        for (int k = 0; k < kSums; ++k) {
            sums[k] = step(sums[k]);
            asm volatile("" : "+v"(sums[k]));  // no chain is folded into another
        }
    }
    char any = 0;
    for (Sum& sum : sums) any = static_cast<char>(any ^ *reinterpret_cast<const char*>(&sum));
    sink = any;
    return rounds * kSums;
}
#endif
}  // namespace

extern "C" {

// Multiply-accumulates of unsigned by signed bytes; 0 where there is no instruction for them.
int64_t int8_products(int64_t rounds) {
#if defined(__AVX512VNNI__)
    const __m512i a = _mm512_set1_epi8(1), b = _mm512_set1_epi8(1);
    return 64 * chains(rounds, _mm512_setzero_si512(), [=](__m512i sum) { return _mm512_dpbusd_epi32(sum, a, b); });
#else
    return 0 * rounds;
#endif
}

// Multiply-accumulates of bf16 numbers into float32.
int64_t bf16_products(int64_t rounds) {
#if defined(__AVX512BF16__)
    const __m512bh a = (__m512bh)_mm512_setzero_si512(), b = a;
    return 32 * chains(rounds, _mm512_setzero_ps(), [=](__m512 sum) { return _mm512_dpbf16_ps(sum, a, b); });
#else
    return 0 * rounds;
#endif
}

// Multiply-accumulates of float32 numbers.
int64_t fp32_products(int64_t rounds) {
#if defined(__AVX512F__)
    const __m512 a = _mm512_set1_ps(0.5f), b = a;
    return 16 * chains(rounds, _mm512_setzero_ps(), [=](__m512 sum) { return _mm512_fmadd_ps(a, b, sum); });
#else
    return 0 * rounds;
#endif
}

// Bytes read from an array of so many, one after the other.
int64_t bytes_read(const int64_t* values, int64_t bytes, int64_t rounds) {
    int64_t sum = 0;
    for (int64_t round = 0; round < rounds; ++round)
        for (int64_t k = 0; k < bytes / 8; k += 1) sum += values[k];
    sink = static_cast<int>(sum);
    return bytes * rounds;
}
}
