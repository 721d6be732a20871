// SelectiveScan2D's backward functions of libmtmamba_cuda.so. Each answers a cudaError_t; none allocates or
// synchronises.
#include "kernels/selective_scan_2d_backward.cuh"
#include "torch_cuda/arguments.h"

using namespace mtmamba;
using namespace mtmamba::torch_cuda;

MTMAMBA_EXPORT int64_t mtmambaCudaSelectiveScan2DBackwardBytes(MapArguments const* a) {
    return withType<int64_t>(a->type, -1, [&](auto zero) {
        return selectiveScan2DBackwardBytes<decltype(zero)>(a->batch, a->groups, a->channels, a->height, a->width,
                                                            a->rank, a->states);
    });
}

MTMAMBA_EXPORT int mtmambaCudaSelectiveScan2DBackward(MapArguments const* a, MapGradientArguments const* g,
                                                      Place const* place) {
    cudaError_t const error = cudaSetDevice(place->device);
    return error != cudaSuccess ? error : withType<int>(a->type, cudaErrorInvalidValue, [&](auto zero) {
        using T = decltype(zero);
        SelectiveScan2DGradients<T> const gradients{static_cast<T const*>(g->y),
                                                    static_cast<T*>(g->x),
                                                    static_cast<T*>(g->xDbl),
                                                    g->dtWeight,
                                                    g->dtBias,
                                                    g->A,
                                                    g->D};
        return runSelectiveScan2DBackward(paramsOf<T>(*a, nullptr), gradients, place->workspace,
                                          static_cast<cudaStream_t>(place->stream));
    });
}
