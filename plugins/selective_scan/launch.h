// What the plugin, compiled by the host compiler, sees of the kernels.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/selective_scan.cuh"

namespace mtmamba {

// T: float, __half or __nv_bfloat16; answers the launch's error. Neither allocates nor synchronises. blockChannels: 32,
// 16 or 8 channels of a block; any is right.
template <typename T>
cudaError_t runSelectiveScan(SelectiveScanParams<T> const& params, int blockChannels, cudaStream_t stream);

// The same with the blocks for these sizes.
template <typename T> cudaError_t runSelectiveScan(SelectiveScanParams<T> const& params, cudaStream_t stream) {
    return runSelectiveScan(params, scanBlockChannels(params.batch, params.channels, params.groups), stream);
}

} // namespace mtmamba
