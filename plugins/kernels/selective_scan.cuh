// The selective scan of Mamba, one thread a channel: straightforward, and the truth the faster kernels are compared to.
//
// Shapes: B batch, D channels, L length, G groups, N states.
//   d_t = softplus(delta_t + delta_bias)          (or delta_t + delta_bias where deltaSoftplus is off)
//   h_t = exp(d_t A) h_{t-1} + d_t B_t u_t,  h_{-1} = 0
//   y_t = C_t . h_t + D u_t                       (channel c uses B and C of group c / (D / G))
// State and discretisation are float32 whatever the tensors are. No torch, no TensorRT: raw pointers and one struct.
// Host compilers see the recurrence alone, so that tests run it without a GPU.
#pragma once

#include "kernels/types.cuh"

namespace mtmamba {

// Contiguous tensors. T: float, __half or __nv_bfloat16. A, D and deltaBias are float32 for every T.
template <typename T> struct SelectiveScanParams {
    T const* u;             // [B, D, L]
    T const* delta;         // [B, D, L]
    float const* A;         // [D, N]
    T const* B;             // [B, G, N, L]
    T const* C;             // [B, G, N, L]
    float const* D;         // [D]
    float const* deltaBias; // [D]
    T* y;                   // [B, D, L]
    int64_t batch;
    int64_t channels; // a multiple of groups
    int64_t groups;
    int64_t states; // 1..kMaxStates
    int64_t length;
    bool deltaSoftplus;
};

// The whole recurrence of channel `c` of image `b`. kStates is N where kExact, else an upper bound of it.
template <typename T, int kStates, bool kExact>
MTMAMBA_HOST_DEVICE inline void scanChannel(SelectiveScanParams<T> const& p, int64_t b, int64_t c) {
    int const states = kExact ? kStates : static_cast<int>(p.states);
    int64_t const row = (b * p.channels + c) * p.length;
    int64_t const group = b * p.groups + c / (p.channels / p.groups);
    T const* const B = p.B + group * states * p.length;
    T const* const C = p.C + group * states * p.length;
    float const skip = p.D[c];
    float const bias = p.deltaBias[c];
    float const* const A = p.A + c * states;
    float h[kStates];
    MTMAMBA_UNROLL
    for (int n = 0; n < kStates; ++n) {
        h[n] = 0.F;
    }
    for (int64_t t = 0; t < p.length; ++t) {
        float const u = toFloat(p.u[row + t]);
        float const shifted = toFloat(p.delta[row + t]) + bias;
        float const d = p.deltaSoftplus ? LibraryMath::softplus(shifted) : shifted;
        float sum = 0.F;
        MTMAMBA_UNROLL
        for (int n = 0; n < kStates; ++n) {
            if (n < states) {
                int64_t const at = n * p.length + t;
                advance<LibraryMath>(h[n], sum, d * A[n], d * u, toFloat(B[at]), toFloat(C[at]));
            }
        }
        store(p.y + row + t, sum + skip * u);
    }
}

#ifdef __CUDACC__

template <typename T, int kStates, bool kExact>
__global__ void __launch_bounds__(kThreads) selectiveScanKernel(SelectiveScanParams<T> p) {
    int64_t const index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    if (index < p.batch * p.channels) {
        scanChannel<T, kStates, kExact>(p, index / p.channels, index % p.channels);
    }
}

// Launches on `stream`; neither allocates nor synchronises. The caller has checked the dimensions.
template <typename T> cudaError_t launchSelectiveScan(SelectiveScanParams<T> const& p, cudaStream_t stream) {
    if (p.states < 1 || p.states > kMaxStates) {
        return cudaErrorInvalidValue;
    }
    auto const kernel = p.states == kFastStates  ? selectiveScanKernel<T, kFastStates, true>
                        : p.states < kFastStates ? selectiveScanKernel<T, kFastStates, false>
                                                 : selectiveScanKernel<T, kMaxStates, false>;
    return launchThreads(kernel, p, p.batch * p.channels, stream);
}

#endif // __CUDACC__

} // namespace mtmamba
