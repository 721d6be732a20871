// SS2D's core, one thread a channel of a group: straightforward, and the truth the faster kernels are compared to.
//
// Shapes: B batch, G groups, D channels, H W map, K = 4 directions, N states, R rank of the step.
//   d = softplus(dt_weight . low + dt_bias), then the recurrence of the selective scan with D u, in each of four orders
//   (rows, columns, both reversed); y is the sum over the orders. low, B and C come from x_dbl at the pixel, so nothing
//   is ever copied into an order. State, step and the sum are float32 whatever the tensors are.
#pragma once

#include <type_traits>

#include "kernels/types.cuh"

namespace mtmamba {

// Contiguous tensors. T: float, __half or __nv_bfloat16. dtWeight, dtBias, A and D are float32 for every T.
template <typename T> struct SelectiveScan2DParams {
    T const* x;            // [B, G, D, H, W]
    T const* xDbl;         // [B, G, K, R+2N, H, W]
    float const* dtWeight; // [G, K, D, R]
    float const* dtBias;   // [G, K, D]
    float const* A;        // [G, K, D, N]
    float const* D;        // [G, K, D]
    T* y;                  // [B, G, H, W, D]
    float* sums;           // [B, G, H, W, D], the sum so far; y itself where T is float
    int64_t batch;
    int64_t groups;
    int64_t channels;
    int64_t height;
    int64_t width;
    int64_t rank;
    int64_t states; // 1..kMaxStates
};

// Bytes of `sums` beside the tensors: float tensors sum in y.
template <typename T>
int64_t sumsBytes(int64_t batch, int64_t groups, int64_t channels, int64_t height, int64_t width) {
    return std::is_same<T, float>::value ? 0 : batch * groups * channels * height * width * int64_t{sizeof(float)};
}

// Direction k of channel `c`, group `g`, image `b`, added to the directions before it.
template <typename T, int kStates, bool kExact>
MTMAMBA_HOST_DEVICE inline void scanDirection(SelectiveScan2DParams<T> const& p, int64_t b, int64_t g, int k,
                                              int64_t c) {
    int const states = kExact ? kStates : static_cast<int>(p.states);
    int64_t const length = p.height * p.width;
    int64_t const image = b * p.groups + g;
    int64_t const row = (g * kDirections + k) * p.channels + c; // of the parameters
    T const* const x = p.x + (image * p.channels + c) * length;
    T const* const low = p.xDbl + (image * kDirections + k) * (p.rank + 2 * states) * length;
    T const* const B = low + p.rank * length;
    T const* const C = B + states * length;
    float const* const weight = p.dtWeight + row * p.rank;
    float const* const A = p.A + row * states;
    float const bias = p.dtBias[row];
    float const skip = p.D[row];
    float h[kStates];
    MTMAMBA_UNROLL
    for (int n = 0; n < kStates; ++n) {
        h[n] = 0.F;
    }
    for (int64_t t = 0; t < length; ++t) {
        int64_t const pixel = pixelOf(k, t, p.height, p.width);
        float shifted = bias;
        for (int64_t r = 0; r < p.rank; ++r) {
            shifted += weight[r] * toFloat(low[r * length + pixel]);
        }
        float const u = toFloat(x[pixel]);
        float const d = LibraryMath::softplus(shifted);
        float sum = 0.F;
        MTMAMBA_UNROLL
        for (int n = 0; n < kStates; ++n) {
            if (n < states) {
                int64_t const at = n * length + pixel;
                advance<LibraryMath>(h[n], sum, d * A[n], d * u, toFloat(B[at]), toFloat(C[at]));
            }
        }
        int64_t const out = (image * length + pixel) * p.channels + c;
        float const value = sum + skip * u;
        float const total = k == 0 ? value : p.sums[out] + value;
        if (k < kDirections - 1) {
            p.sums[out] = total;
        } else {
            store(p.y + out, total);
        }
    }
}

// All four directions of one channel, in a fixed order: the sum is the same in every run.
template <typename T, int kStates, bool kExact>
MTMAMBA_HOST_DEVICE inline void scanMap(SelectiveScan2DParams<T> const& p, int64_t b, int64_t g, int64_t c) {
    for (int k = 0; k < kDirections; ++k) {
        scanDirection<T, kStates, kExact>(p, b, g, k, c);
    }
}

#ifdef __CUDACC__

template <typename T, int kStates, bool kExact>
__global__ void __launch_bounds__(kThreads) selectiveScan2DKernel(SelectiveScan2DParams<T> p) {
    int64_t const index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    if (index < p.batch * p.groups * p.channels) {
        int64_t const image = index / p.channels;
        scanMap<T, kStates, kExact>(p, image / p.groups, image % p.groups, index % p.channels);
    }
}

// Launches on `stream`; neither allocates nor synchronises. The caller has checked the dimensions and given `sums`.
template <typename T> cudaError_t launchSelectiveScan2D(SelectiveScan2DParams<T> const& p, cudaStream_t stream) {
    if (p.states < 1 || p.states > kMaxStates || !p.sums) {
        return cudaErrorInvalidValue;
    }
    auto const kernel = p.states == kFastStates  ? selectiveScan2DKernel<T, kFastStates, true>
                        : p.states < kFastStates ? selectiveScan2DKernel<T, kFastStates, false>
                                                 : selectiveScan2DKernel<T, kMaxStates, false>;
    return launchThreads(kernel, p, p.batch * p.groups * p.channels, stream);
}

#endif // __CUDACC__

} // namespace mtmamba
