// The backward kernels of the N = 16 path, alone, for the compiler's report on registers and spills. bfloat16 differs
// from half in its loads and stores alone.
#include "kernels/selective_scan_2d_backward.cuh"
#include "kernels/selective_scan_backward.cuh"

using namespace mtmamba::backward;

#define FAST_PATHS(T)                                                                                                  \
    template __global__ void mtmamba::backward::backwardSummaryKernel<T, 4, false>(BackwardPass<T>);                   \
    template __global__ void mtmamba::backward::backwardSummaryKernel<T, 4, true>(BackwardPass<T>);                    \
    template __global__ void mtmamba::backward::backwardChunkKernel<T, 4, false>(BackwardPass<T>);                     \
    template __global__ void mtmamba::backward::backwardChunkKernel<T, 4, true>(BackwardPass<T>);

FAST_PATHS(float)
FAST_PATHS(__half)
