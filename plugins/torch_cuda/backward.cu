// SelectiveScan's backward functions of libmtmamba_cuda.so. Each answers a cudaError_t; none allocates or synchronises.
#include "kernels/selective_scan_backward.cuh"
#include "torch_cuda/arguments.h"

using namespace mtmamba;
using namespace mtmamba::torch_cuda;

MTMAMBA_EXPORT int64_t mtmambaCudaSelectiveScanBackwardBytes(ScanArguments const* a) {
    return selectiveScanBackwardBytes(a->batch, a->channels, a->groups, a->states, a->length);
}

MTMAMBA_EXPORT int mtmambaCudaSelectiveScanBackward(ScanArguments const* a, ScanGradientArguments const* g,
                                                    Place const* place) {
    cudaError_t const error = cudaSetDevice(place->device);
    return error != cudaSuccess ? error : withType<int>(a->type, cudaErrorInvalidValue, [&](auto zero) {
        using T = decltype(zero);
        SelectiveScanGradients<T> const gradients{static_cast<T const*>(g->y),
                                                  static_cast<T*>(g->u),
                                                  static_cast<T*>(g->delta),
                                                  g->A,
                                                  static_cast<T*>(g->B),
                                                  static_cast<T*>(g->C),
                                                  g->D,
                                                  g->deltaBias};
        return runSelectiveScanBackward(paramsOf<T>(*a, nullptr), gradients, place->workspace,
                                        static_cast<cudaStream_t>(place->stream));
    });
}
