// What the plugin, compiled by the host compiler, sees of the kernels.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/selective_scan_2d.cuh"

namespace mtmamba {

// T: float, __half or __nv_bfloat16; answers the launch's error. Neither allocates nor synchronises. The workspace is
// of the plan, MapWorkspace<T>(..., plan).bytes.
template <typename T>
cudaError_t runSelectiveScan2D(SelectiveScan2DParams<T> const& params, MapPlan const& plan, cudaStream_t stream);

// The same with the plan for these sizes: the workspace is of workspaceBytes<T>() for this batch.
template <typename T> cudaError_t runSelectiveScan2D(SelectiveScan2DParams<T> const& params, cudaStream_t stream) {
    return runSelectiveScan2D(params, mapPlan(params.batch * params.groups, params.channels), stream);
}

} // namespace mtmamba
