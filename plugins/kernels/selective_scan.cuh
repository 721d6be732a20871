// The selective scan of Mamba, one thread a channel: straightforward, and the truth the faster kernels are compared to.
//
// Shapes: B batch, D channels, L length, G groups, N states.
//   d_t = softplus(delta_t + delta_bias)          (or delta_t + delta_bias where deltaSoftplus is off)
//   h_t = exp(d_t A) h_{t-1} + d_t B_t u_t,  h_{-1} = 0
//   y_t = C_t . h_t + D u_t                       (channel c uses B and C of group c / (D / G))
// State and discretisation are float32 whatever the tensors are. No torch, no TensorRT: raw pointers and one struct.
// Host compilers see the recurrence alone, so that tests run it without a GPU.
#pragma once

#include <cuda_fp16.h>

#include <cmath>
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

// Contiguous tensors. T: float or __half. A, D and deltaBias are float32 for every T.
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

MTMAMBA_HOST_DEVICE inline float toFloat(float value) { return value; }
MTMAMBA_HOST_DEVICE inline float toFloat(__half value) { return __half2float(value); }
MTMAMBA_HOST_DEVICE inline void store(float* target, float value) { *target = value; }
MTMAMBA_HOST_DEVICE inline void store(__half* target, float value) { *target = __float2half_rn(value); }

// log(1 + exp(x)); past 20 it equals x in float32.
MTMAMBA_HOST_DEVICE inline float softplus(float x) { return x > 20.F ? x : log1pf(expf(x)); }

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
        float const d = p.deltaSoftplus ? softplus(shifted) : shifted;
        float const du = d * u;
        float sum = 0.F;
        MTMAMBA_UNROLL
        for (int n = 0; n < kStates; ++n) {
            if (n < states) {
                h[n] = expf(d * A[n]) * h[n] + du * toFloat(B[n * p.length + t]);
                sum += toFloat(C[n * p.length + t]) * h[n];
            }
        }
        store(p.y + row + t, sum + skip * u);
    }
}

#ifdef __CUDACC__

// Channels mostly number a few thousand, so blocks of one warp reach the most multiprocessors.
constexpr int kThreads = 32;

template <typename T, int kStates, bool kExact>
__global__ void __launch_bounds__(kThreads) selectiveScanKernel(SelectiveScanParams<T> p) {
    int64_t const index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    if (index < p.batch * p.channels) {
        scanChannel<T, kStates, kExact>(p, index / p.channels, index % p.channels);
    }
}

// Launches on `stream`; neither allocates nor synchronises. The caller has checked the dimensions.
template <typename T> cudaError_t launchSelectiveScan(SelectiveScanParams<T> const& p, cudaStream_t stream) {
    int64_t const blocks = (p.batch * p.channels + kThreads - 1) / kThreads;
    if (p.states < 1 || p.states > kMaxStates || blocks < 1 || blocks > INT32_MAX) {
        return cudaErrorInvalidValue;
    }
    auto const kernel = p.states == kFastStates  ? selectiveScanKernel<T, kFastStates, true>
                        : p.states < kFastStates ? selectiveScanKernel<T, kFastStates, false>
                                                 : selectiveScanKernel<T, kMaxStates, false>;
    kernel<<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(p);
    return cudaGetLastError();
}

#endif // __CUDACC__

} // namespace mtmamba
