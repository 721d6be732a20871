// A vector of channels in the compiler's own vector types (GCC, Clang), with the two functions a scan needs. NaN and
// Inf behave as in the C library's; no flag that would let the compiler assume otherwise may be used.
//
// Accuracy in float32, tested: 2^x within 1.5 units in the last place, softplus within 4.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__AVX512F__) && defined(__AVX512DQ__)
#include <immintrin.h>
#define MTMAMBA_AVX512 1
#endif

namespace mtmamba::cpu {

#if defined(MTMAMBA_AVX512)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef int32_t VecInt __attribute__((vector_size(kLanes * 4)));

inline Vec all(float value) { return Vec{} + value; }

// The integer next to x (ties to even) for |x| < 2^22; NaN for NaN.
inline Vec nearest(Vec x) {
    Vec const shift = all(12582912.F); // 1.5 * 2^23: adding it leaves no bits for a fraction
    return (x + shift) - shift;
}

// 2^r for |r| <= 0.5, exactly 1 at 0: a slow decay stays slow. Relative error of the polynomial 1e-8.
inline Vec exp2Fraction(Vec r) {
    Vec p = r * 0.000154531634F + 0.00133908633F;
    p = p * r + 0.00961808302F;
    p = p * r + 0.0555035695F;
    p = p * r + 0.240226507F;
    p = p * r + 0.693147182F;
    return p * r + 1.F;
}

// p * 2^n for whole n. In two factors, so that results below the smallest normal number and past the largest are right.
inline Vec scale(Vec p, Vec n) {
#if defined(MTMAMBA_AVX512)
    return (Vec)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
    VecInt const whole = __builtin_convertvector(n, VecInt), half = whole >> 1;
    VecInt const first = (half + 127) << 23, second = (whole - half + 127) << 23;
    return p * (Vec)first * (Vec)second;
#endif
}

inline Vec exp2(Vec x) {
#if defined(MTMAMBA_AVX512)
    Vec const r = (Vec)_mm512_reduce_ps((__m512)x, 0x08); // x minus its nearest integer; 0 for an infinity
    return scale(exp2Fraction(r), x - r);
#else
    Vec const low = all(-200.F), high = all(200.F);
    x = x < low ? low : x; // NaN is neither
    x = x > high ? high : x;
    Vec const n = nearest(x);
    // NaN has no integer: the power is 1 there, and the fraction is NaN.
    return scale(exp2Fraction(x - n), n == n ? n : Vec{});
#endif
}

// e^x for x <= 0. log2(e) is taken in two parts, so that the relative error does not grow with |x|.
inline Vec expOfNegative(Vec x) {
    Vec const low = all(-150.F);
    x = x < low ? low : x;
    Vec const n = nearest(x * 1.44269504F);
    Vec const r = (x - n * 0.693359375F) + n * 2.12194440e-4F;
    return scale(exp2Fraction(r * 1.44269504F), n == n ? n : Vec{});
}

// log(1 + e^x) = max(x, 0) + log1p(e^-|x|), and log1p(e) = 2 atanh(e / (2 + e)).
inline Vec softplus(Vec x) {
    Vec const e = expOfNegative(x > 0.F ? -x : x);
    Vec const s = e / (e + 2.F);
    Vec const z = s * s;
    Vec p = z * 0.140788898F + 0.139825791F;
    p = p * z + 0.200122982F;
    p = p * z + 0.333331615F;
    p = p * z + 1.F;
    return (x > 0.F ? x : Vec{}) + 2.F * s * p;
}

// softplus's derivative 1 / (1 + e^-x).
inline Vec sigmoid(Vec x) {
    Vec const e = expOfNegative(x > 0.F ? -x : x);
    return (x > 0.F ? all(1.F) : e) / (e + 1.F);
}

// The policy that kernels/step.h runs with here. Exponents come in units of ln 2: A is multiplied by log2(e)
// beforehand.
struct VectorMath {
    using Value = Vec;
    static Vec decay(Vec exponent) { return exp2(exponent); }
};
constexpr float kLog2E = 1.44269504F;

// The halves of kLanes / Parts parts of a, then of b: the low half of each part, or the high one.
template <int Parts, bool High, int... I> inline Vec halves(Vec a, Vec b, std::integer_sequence<int, I...>) {
    constexpr int part = kLanes / Parts, half = part / 2;
    return __builtin_shufflevector(a, b, ((I / half) * part + I % half + (High ? half : 0))...);
}

// Sums over the lanes: lane i of the result is the sum of values[i]'s lanes. Overwrites `values`. The order of the
// additions is fixed.
template <int Parts = 1> inline Vec laneSums(Vec (&values)[kLanes]) {
    using Lanes = std::make_integer_sequence<int, kLanes>;
    for (int i = 0; i < kLanes / Parts / 2; ++i) {
        Vec const a = values[2 * i], b = values[2 * i + 1];
        values[i] = halves<Parts, false>(a, b, Lanes{}) + halves<Parts, true>(a, b, Lanes{});
    }
    if constexpr (Parts * 2 < kLanes) {
        return laneSums<Parts * 2>(values);
    } else {
        return values[0];
    }
}

} // namespace mtmamba::cpu
