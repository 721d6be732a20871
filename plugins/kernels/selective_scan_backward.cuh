// The gradients of SelectiveScan (selective_scan.cuh) on CUDA: one backward pass (backward_pass.cuh), an image's group
// a plane.
#pragma once

#include "kernels/backward_sums.cuh"
#include "kernels/selective_scan.cuh"

namespace mtmamba {

// Contiguous; each gradient has its tensor's shape and type.
template <typename T> struct SelectiveScanGradients {
    T const* y; // comes in
    T* u;
    T* delta;
    float* A;
    T* B;
    T* C;
    float* D;
    float* deltaBias;
};

// Bytes of workspace that the pass needs, exactly, 4-byte aligned. channels: of all groups.
inline int64_t selectiveScanBackwardBytes(int64_t batch, int64_t channels, int64_t groups, int64_t states,
                                          int64_t length) {
    backward::BackwardWorkspace const size(batch * groups, channels / groups, length, 0, states);
    return size.floats() * int64_t{sizeof(float)};
}

#ifdef MTMAMBA_SIMT

// p.y is not used. Neither allocates nor synchronises; the caller has checked
// the dimensions.
template <typename T>
cudaError_t runSelectiveScanBackward(SelectiveScanParams<T> const& p, SelectiveScanGradients<T> const& gradients,
                                     void* workspace, cudaStream_t stream) {
    backward::BackwardPass<T> pass{};
    pass.u = p.u;
    pass.delta = p.delta;
    pass.B = p.B;
    pass.C = p.C;
    pass.A = p.A;
    pass.D = p.D;
    pass.bias = p.deltaBias;
    pass.gradY = gradients.y;
    pass.gradU = gradients.u;
    pass.gradDelta = gradients.delta;
    pass.gradB = gradients.B;
    pass.gradC = gradients.C;
    pass.gradA = gradients.A;
    pass.gradD = gradients.D;
    pass.gradBias = gradients.deltaBias;
    pass.planes = p.batch * p.groups;
    pass.groups = p.groups;
    pass.channels = p.channels / p.groups;
    pass.length = pass.width = p.length;
    pass.height = 1;
    pass.states = p.states;
    pass.featureStride = p.states * p.length;
    pass.rowStride = pass.channels;
    pass.gradYPlane = pass.channels * p.length;
    pass.gradYChannel = p.length;
    pass.gradYPixel = 1;
    pass.softplus = p.deltaSoftplus;
    pass.first = pass.last = true;
    backward::divideWorkspace(pass, static_cast<float*>(workspace));
    return backward::runBackwardPass<false>(pass, stream);
}

#endif // MTMAMBA_SIMT

} // namespace mtmamba
