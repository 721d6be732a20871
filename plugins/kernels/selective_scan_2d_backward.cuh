// The gradients of SelectiveScan2D (selective_scan_2d.cuh) on CUDA: a backward pass (backward_pass.cuh) for each of the
// four orders, one after another in the same workspace; x's gradient adds up from one to the next.
#pragma once

#include "kernels/backward_sums.cuh"
#include "kernels/selective_scan_2d.cuh"

namespace mtmamba {

// Contiguous; each gradient has its tensor's shape and type.
template <typename T> struct SelectiveScan2DGradients {
    T const* y; // comes in
    T* x;
    T* xDbl;
    float* dtWeight;
    float* dtBias;
    float* A;
    float* D;
};

// Bytes of workspace that the passes need, exactly, 4-byte aligned. float tensors add up in x's gradient itself.
template <typename T>
int64_t selectiveScan2DBackwardBytes(int64_t batch, int64_t groups, int64_t channels, int64_t height, int64_t width,
                                     int64_t rank, int64_t states) {
    backward::BackwardWorkspace const size(batch * groups, channels, height * width, rank, states);
    int64_t const sums = std::is_same<T, float>::value ? 0 : batch * groups * channels * height * width;
    return (size.floats() + sums) * int64_t{sizeof(float)};
}

// The pass over order k.
template <typename T>
backward::BackwardPass<T> backwardPassOf(SelectiveScan2DParams<T> const& p,
                                         SelectiveScan2DGradients<T> const& gradients, int k, float* workspace) {
    int64_t const length = p.height * p.width, features = p.rank + 2 * p.states;
    int64_t const low = k * features * length, B = low + p.rank * length, C = B + p.states * length;
    int64_t const row = k * p.channels;
    backward::BackwardPass<T> pass{};
    pass.u = p.x;
    pass.low = p.xDbl + low;
    pass.B = p.xDbl + B;
    pass.C = p.xDbl + C;
    pass.A = p.A + row * p.states;
    pass.D = p.D + row;
    pass.bias = p.dtBias + row;
    pass.weight = p.dtWeight + row * p.rank;
    pass.gradY = gradients.y;
    pass.gradU = gradients.x;
    pass.gradLow = gradients.xDbl + low;
    pass.gradB = gradients.xDbl + B;
    pass.gradC = gradients.xDbl + C;
    pass.gradA = gradients.A + row * p.states;
    pass.gradD = gradients.D + row;
    pass.gradBias = gradients.dtBias + row;
    pass.gradWeight = gradients.dtWeight + row * p.rank;
    pass.planes = p.batch * p.groups;
    pass.groups = p.groups;
    pass.channels = p.channels;
    pass.length = length;
    pass.states = p.states;
    pass.rank = p.rank;
    pass.height = p.height;
    pass.width = p.width;
    pass.featureStride = kDirections * features * length;
    pass.rowStride = kDirections * p.channels;
    pass.gradYPlane = p.channels * length; // y's channels come last
    pass.gradYChannel = 1;
    pass.gradYPixel = p.channels;
    pass.direction = k;
    pass.softplus = true;
    pass.first = k == 0;
    pass.last = k == kDirections - 1;
    float* const rest = backward::divideWorkspace(pass, workspace);
    if constexpr (std::is_same<T, float>::value) {
        pass.sumU = gradients.x;
    } else {
        pass.sumU = rest;
    }
    return pass;
}

#ifdef MTMAMBA_SIMT

// p.y and the forward's workspace are not used. Neither allocates nor synchronises; the caller has checked
// the dimensions.
template <typename T>
cudaError_t runSelectiveScan2DBackward(SelectiveScan2DParams<T> const& p, SelectiveScan2DGradients<T> const& gradients,
                                       void* workspace, cudaStream_t stream) {
    cudaError_t error = cudaSuccess;
    for (int k = 0; k < kDirections && error == cudaSuccess; ++k) {
        error =
            backward::runBackwardPass<true>(backwardPassOf(p, gradients, k, static_cast<float*>(workspace)), stream);
    }
    return error;
}

#endif // MTMAMBA_SIMT

} // namespace mtmamba
