// Small loops that do nothing but what a processor is fastest at. Each returns how much it did.
#include <immintrin.h>

#include <cstdint>

namespace {
volatile int sink;

#if defined(__AVX512F__)
// Twelve chains hide the latency of two units; named one by one, so that each stays in a register.
template <class Sum, class Step> int64_t chains(int64_t rounds, Sum zero, Step step) {
    Sum a = zero, b = zero, c = zero, d = zero, e = zero, f = zero;
    Sum g = zero, h = zero, i = zero, j = zero, k = zero, l = zero;
    for (int64_t round = 0; round < rounds; ++round) {
        a = step(a), b = step(b), c = step(c), d = step(d), e = step(e), f = step(f);
        g = step(g), h = step(h), i = step(i), j = step(j), k = step(k), l = step(l);
        asm volatile("" : "+v"(a), "+v"(b), "+v"(c), "+v"(d), "+v"(e), "+v"(f));  // no chain is folded into another
        asm volatile("" : "+v"(g), "+v"(h), "+v"(i), "+v"(j), "+v"(k), "+v"(l));
    }
    return rounds * 12;
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
