/* Vectors of V floats for the instruction set at hand, and their elementary functions. */

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#include <immintrin.h>
#define V 16
#elif defined(__AVX2__)
#include <immintrin.h>
#define V 8
#else
#define V 4
#endif

typedef float vf __attribute__((vector_size(4 * V)));
typedef int32_t vi __attribute__((vector_size(4 * V)));

#define INLINE static inline __attribute__((always_inline))
#define LOG2_E 1.44269504088896341f
#define LN_2 0.69314718055994531f
#define TILE 32 /* steps of a tile */

INLINE vf splat(float x) { return (vf){0} + x; }

INLINE vf load(const float *p) {
    vf x;
    memcpy(&x, p, sizeof x);
    return x;
}

INLINE void store(float *p, vf x) { memcpy(p, &x, sizeof x); }

/* The first `count` lanes; the rest is zero. */
INLINE vf load_part(const float *p, ptrdiff_t count) {
    if (count >= V) return load(p);
    vf x = {0};
    memcpy(&x, p, count * sizeof(float));
    return x;
}

INLINE void store_part(float *p, vf x, ptrdiff_t count) {
    if (count >= V)
        store(p, x);
    else
        memcpy(p, &x, count * sizeof(float));
}

INLINE float sum_lanes(vf x) {
#if V == 16
    return _mm512_reduce_add_ps(x);
#else
    float total = 0;
    for (int i = 0; i < V; i++) total += x[i];
    return total;
#endif
}

INLINE vf maximum(vf a, vf b) {
#if V == 16
    return _mm512_max_ps(a, b);
#elif V == 8
    return _mm256_max_ps(a, b);
#else
    vi larger = a > b;
    return (vf)(((vi)a & larger) | ((vi)b & ~larger));
#endif
}

INLINE vf minimum(vf a, vf b) { return -maximum(-a, -b); }

/* 2^x within 1 ulp for x <= 127; 0 or the smallest normal number far below. */
INLINE vf exp2_v(vf x) {
#if V == 16
    vf whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
    x = maximum(x, splat(-126.0f));
    const vf magic = splat(12582912.0f); /* 1.5 x 2^23: adding it rounds to an integer */
    vf shifted = x + magic;
    vf whole = shifted - magic;
#endif
    vf r = x - whole;
    vf p = splat(1.535336188319500e-4f);
    p = p * r + 1.339887440266574e-3f;
    p = p * r + 9.618437357674640e-3f;
    p = p * r + 5.550332471162809e-2f;
    p = p * r + 2.402264791363012e-1f;
    p = p * r + 6.931472028550421e-1f;
    p = p * r + 1.0f;
#if V == 16
    return _mm512_scalef_ps(p, whole);
#else
    return (vf)((vi)p + ((vi)shifted << 23));
#endif
}

INLINE vf sigmoid_v(vf x) {
    return 1.0f / (1.0f + exp2_v(minimum(x * -LOG2_E, splat(126.0f))));
}

/* log(1 + e^x) = max(x, 0) + 2 artanh(t / (2 + t)), t = e^-|x|; accurate relative to its value. */
INLINE vf softplus_v(vf x) {
    vf t = exp2_v(maximum(x, -x) * -LOG2_E);
    vf s = t / (2.0f + t);
    vf q = s * s;
    vf p = splat(1.0f / 13.0f);
    p = p * q + (1.0f / 11.0f);
    p = p * q + (1.0f / 9.0f);
    p = p * q + (1.0f / 7.0f);
    p = p * q + (1.0f / 5.0f);
    p = p * q + (1.0f / 3.0f);
    p = p * q + 1.0f;
    return maximum(x, splat(0.0f)) + 2.0f * s * p;
}
