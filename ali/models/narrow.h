/* Numbers of narrow.py's C files: float, or bfloat16 with -DBF16, for which they are compiled once
more. Weights, statistics and their gradients are always float, sums too. Results depend on nothing
but the arguments. */

#pragma once
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 32")

/* Numbers -------------------------------------------------------------------------------------- */

#if defined(__AVX512F__)
enum { LANES = 16, ACROSS = 24 }; /* floats of a vector register; registers that add up */
#else
enum { LANES = 8, ACROSS = 12 };
#endif
typedef float vector __attribute__((vector_size(4 * LANES)));
typedef int32_t integers __attribute__((vector_size(4 * LANES)));
typedef int16_t shorts __attribute__((vector_size(2 * LANES)));

#ifdef BF16
#include <immintrin.h>
typedef uint16_t number;
typedef __m512bh row; /* of a packed matrix: LANES pairs, which are multiplied and added at once */
enum { PAIR = 2 };

INLINE float get(number v) {
    union { uint32_t bits; float value; } u = {(uint32_t)v << 16};
    return u.value;
}
INLINE number put(float v) { /* to nearest even */
    union { float value; uint32_t bits; } u = {v};
    uint32_t rounded = (u.bits + 0x7fff + (u.bits >> 16 & 1)) >> 16;
    return v == v ? rounded : 0x7fc0;
}
INLINE vector get_vector(const number *p) {
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return (vector)_mm512_slli_epi32(wide, 16);
}
INLINE row load_row(const number *w) { return (row)_mm512_loadu_si512(w); }
INLINE vector add_product(vector sum, const number *a, row w) {
    int pair;
    memcpy(&pair, a, 4);
    return (vector)_mm512_dpbf16_ps((__m512)sum, w, (__m512bh)_mm512_set1_epi32(pair));
}
INLINE void put_vector(number *out, vector v) {
    _mm256_storeu_si256((__m256i *)out, (__m256i)_mm512_cvtneps_pbh((__m512)v));
}
#else
typedef float number;
typedef vector row;
enum { PAIR = 1 };

INLINE float get(number v) { return v; }
INLINE number put(float v) { return v; }
INLINE vector get_vector(const number *p) {
    vector v;
    memcpy(&v, p, sizeof v);
    return v;
}
INLINE row load_row(const number *w) {
    row v;
    memcpy(&v, w, sizeof v);
    return v;
}
INLINE vector add_product(vector sum, const number *a, row w) { return sum + *a * w; }
INLINE void put_vector(number *out, vector v) { memcpy(out, &v, sizeof v); }
#endif

INLINE vector load(const float *p) {
    vector v;
    memcpy(&v, p, sizeof v);
    return v;
}
INLINE void store(float *p, vector v) { memcpy(p, &v, sizeof v); }
INLINE vector where(integers mask, vector a, vector b) {
    return (vector)((mask & (integers)a) | (~mask & (integers)b));
}
INLINE int up(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }
INLINE int least(int a, int b) { return a < b ? a : b; }

/* n floats as numbers */
INLINE void put_row(const float *restrict from, number *restrict to, long n) {
    long i = 0;
    for (; i + LANES <= n; i += LANES) put_vector(to + i, load(from + i));
    for (; i < n; i++) to[i] = put(from[i]);
}

/* Rows x and y of n numbers as n pairs (x₀ y₀ x₁ y₁ …); y NULL: zeros. With PAIR 1, x alone. */
INLINE void interleave(const number *restrict x, const number *restrict y, number *restrict to, long n) {
#ifdef BF16
    long i = 0;
    for (; i + 16 <= n; i += 16) {
        __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(x + i)));
        __m512i high = y ? _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(y + i)))
                         : _mm512_setzero_si512();
        _mm512_storeu_si512(to + 2 * i, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
    }
    for (; i < n; i++) to[2 * i] = x[i], to[2 * i + 1] = y ? y[i] : 0;
#else
    (void)y;
    memcpy(to, x, n * sizeof(number));
#endif
}

/* Memory that a thread keeps from call to call, each file its own ------------------------------- */

enum { BUFFERS = 5 };
static _Thread_local struct { void *memory; size_t size; } buffers[BUFFERS];

static inline void *buffer(int which, size_t size) {
    size = (size + 127) / 64 * 64;
    if (buffers[which].size < size) {
        free(buffers[which].memory);
        buffers[which].memory = aligned_alloc(64, size);
        if (!buffers[which].memory) abort();
        buffers[which].size = size;
    }
    return buffers[which].memory;
}

static inline void *zeros(int which, size_t size) { return memset(buffer(which, size), 0, size); }
