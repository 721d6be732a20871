// What the plugin, compiled by the host compiler, sees of the kernels.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/selective_scan_2d.cuh"

namespace mtmamba {

// T: float, __half or __nv_bfloat16; answers the launch's error. Neither allocates nor synchronises.
template <typename T> cudaError_t runSelectiveScan2D(SelectiveScan2DParams<T> const& params, cudaStream_t stream);

} // namespace mtmamba
