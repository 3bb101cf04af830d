/* Numbers of narrow.py's C files: float, or bfloat16 with -DBF16, for which they are compiled once
more. Weights, statistics and their gradients are always float, sums too. Results depend on nothing
but the arguments. */

#pragma once
#include <math.h>
#include <stdint.h>
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
INLINE int up(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }
INLINE int least(int a, int b) { return a < b ? a : b; }
