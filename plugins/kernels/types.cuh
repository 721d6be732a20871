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

} // namespace mtmamba
