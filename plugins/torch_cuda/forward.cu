// The forward functions of libmtmamba_cuda.so. Each answers a cudaError_t; none allocates or synchronises.
#include "selective_scan/launch.h"
#include "selective_scan_2d/launch.h"
#include "torch_cuda/arguments.h"

using namespace mtmamba;
using namespace mtmamba::torch_cuda;

MTMAMBA_EXPORT char const* mtmambaCudaErrorText(int error) {
    return cudaGetErrorString(static_cast<cudaError_t>(error));
}

MTMAMBA_EXPORT int mtmambaCudaSelectiveScan(ScanArguments const* a, void* y, Place const* place) {
    cudaError_t const error = cudaSetDevice(place->device);
    return error != cudaSuccess ? error : withType<int>(a->type, cudaErrorInvalidValue, [&](auto zero) {
        return runSelectiveScan(paramsOf<decltype(zero)>(*a, y), static_cast<cudaStream_t>(place->stream));
    });
}

MTMAMBA_EXPORT int64_t mtmambaCudaSelectiveScan2DBytes(MapArguments const* a) {
    return withType<int64_t>(a->type, -1, [&](auto zero) {
        return workspaceBytes<decltype(zero)>(a->batch, a->batch, a->groups, a->channels, a->height, a->width, a->rank,
                                              a->states);
    });
}

MTMAMBA_EXPORT int mtmambaCudaSelectiveScan2D(MapArguments const* a, void* y, Place const* place) {
    cudaError_t const error = cudaSetDevice(place->device);
    return error != cudaSuccess ? error : withType<int>(a->type, cudaErrorInvalidValue, [&](auto zero) {
        auto params = paramsOf<decltype(zero)>(*a, y);
        params.workspace = place->workspace;
        return runSelectiveScan2D(params, static_cast<cudaStream_t>(place->stream));
    });
}
