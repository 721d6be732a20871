// One step of the recurrence, shared by every kernel: CUDA threads run it on a float, the CPU kernel on a vector of
// channels. `Math` says what a value is and what decay(exponent) is. No CUDA and no SIMD headers here: a host compiler
// alone compiles it.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define MTMAMBA_HOST_DEVICE __host__ __device__
#else
#define MTMAMBA_HOST_DEVICE
#endif
#ifdef __CUDA_ARCH__
#define MTMAMBA_UNROLL _Pragma("unroll")
#else
#define MTMAMBA_UNROLL
#endif

namespace mtmamba {

constexpr int kMaxStates = 64;
constexpr int kFastStates = 16;

// K, the orders of a two-dimensional scan: rows, columns, rows reversed, columns reversed.
constexpr int kDirections = 4;

// What one token does to a state: h <- decay h + added.
template <typename Math> struct Step {
    typename Math::Value decay, added;

    MTMAMBA_HOST_DEVICE typename Math::Value operator()(typename Math::Value h) const { return decay * h + added; }
};

// The step of exponent = d A and input = d u. `Scalar`: Value or float.
template <typename Math, typename Scalar>
MTMAMBA_HOST_DEVICE inline Step<Math> stepOf(typename Math::Value exponent, typename Math::Value input, Scalar B) {
    return {Math::decay(exponent), input * B};
}

// One step of h, and what it adds to y: sum <- sum + C h.
template <typename Math, typename Scalar>
MTMAMBA_HOST_DEVICE inline void advance(typename Math::Value& h, typename Math::Value& sum, Step<Math> const& step,
                                        Scalar C) {
    h = step(h);
    sum += h * C;
}
template <typename Math, typename Scalar>
MTMAMBA_HOST_DEVICE inline void advance(typename Math::Value& h, typename Math::Value& sum,
                                        typename Math::Value exponent, typename Math::Value input, Scalar B, Scalar C) {
    advance<Math>(h, sum, stepOf<Math>(exponent, input, B), C);
}

// The pixel (row-major) that step t of direction k visits.
template <typename Index> MTMAMBA_HOST_DEVICE inline Index pixelOf(int direction, Index t, Index height, Index width) {
    Index const forward = direction >= 2 ? height * width - 1 - t : t;
    return direction % 2 ? forward % height * width + forward / height : forward;
}

} // namespace mtmamba
