// The tensors' types: float32, float16, bfloat16. Arithmetic is float32 for each.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/step.h"

namespace mtmamba {

MTMAMBA_HOST_DEVICE inline float toFloat(float value) { return value; }
MTMAMBA_HOST_DEVICE inline float toFloat(__half value) { return __half2float(value); }
MTMAMBA_HOST_DEVICE inline float toFloat(__nv_bfloat16 value) { return __bfloat162float(value); }

// Rounds to nearest, ties to even.
MTMAMBA_HOST_DEVICE inline void store(float* target, float value) { *target = value; }
MTMAMBA_HOST_DEVICE inline void store(__half* target, float value) { *target = __float2half_rn(value); }
MTMAMBA_HOST_DEVICE inline void store(__nv_bfloat16* target, float value) { *target = __float2bfloat16_rn(value); }

#ifdef __CUDACC__

// Channels mostly number a few thousand, so blocks of one warp reach the most multiprocessors.
constexpr int kThreads = 32;

// Launches kernel<<<>>>(p) with a thread for each of `threads`. Neither allocates nor synchronises.
template <typename Params>
cudaError_t launchThreads(void (*kernel)(Params), Params const& p, int64_t threads, cudaStream_t stream) {
    int64_t const blocks = (threads + kThreads - 1) / kThreads;
    if (blocks < 1 || blocks > INT32_MAX) {
        return cudaErrorInvalidValue;
    }
    kernel<<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(p);
    return cudaGetLastError();
}

#endif // __CUDACC__

} // namespace mtmamba
