// What the plugin, compiled by the host compiler, sees of the kernels.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/selective_scan.cuh"

namespace mtmamba {

// Float or half tensors; returns the launch's error. Neither allocates nor synchronises.
cudaError_t runSelectiveScan(SelectiveScanParams<float> const& params, cudaStream_t stream);
cudaError_t runSelectiveScan(SelectiveScanParams<__half> const& params, cudaStream_t stream);

} // namespace mtmamba
