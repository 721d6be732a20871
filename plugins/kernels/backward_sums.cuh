// The parts of the backward pass between and after its chunks (backward_pass.cuh): the carry along the chunks, and the
// sums of what blocks left. One thread to a sum, in a fixed order.
#pragma once

#include "kernels/backward_chunk.cuh"

#ifdef MTMAMBA_SIMT

namespace mtmamba::backward {

constexpr int kSumThreads = 128;
constexpr size_t kSharedBytes = 48 << 10; // a block may have without asking
constexpr int kAhead = 8;                 // chunks whose values are on their way at once

MTMAMBA_DEVICE int64_t threadOfGrid() { return static_cast<int64_t>(blockIdx.x) * kSumThreads + threadIdx.x; }

// values[i] <- what comes before it: 0 at first, then decays[i] before + values[i]. `step` apart, in either direction.
MTMAMBA_DEVICE void carryAlong(float* values, float const* decays, int64_t step, int64_t count) {
    float before = 0.F;
    for (int64_t i = 0; i < count; i += kAhead) {
        float own[kAhead] = {}, decay[kAhead] = {};
        MTMAMBA_UNROLL
        for (int j = 0; j < kAhead; ++j) {
            if (i + j < count) {
                own[j] = values[(i + j) * step];
                decay[j] = decays[(i + j) * step];
            }
        }
        MTMAMBA_UNROLL
        for (int j = 0; j < kAhead; ++j) {
            if (i + j < count) {
                values[(i + j) * step] = before;
                before = decay[j] * before + own[j];
            }
        }
    }
}

// Step 2: a thread for every state of every channel, forwards, and one more, backwards.
template <typename T> __global__ void __launch_bounds__(kSumThreads) backwardCarryKernel(BackwardPass<T> p) {
    int64_t const row = p.channels * p.states, all = p.planes * row, index = threadOfGrid();
    if (index < 2 * all) {
        int64_t const state = index % all;
        int64_t const first = state / row * p.chunks * row + state % row;
        if (index < all) {
            carryAlong(p.starts + first, p.decays + first, row, p.chunks);
        } else {
            int64_t const last = first + (p.chunks - 1) * row;
            carryAlong(p.carries + last, p.decays + last, -row, p.chunks);
        }
    }
}

// Blocks' parts into the gradients of low, B and C: elementwise, since the parts lie as the tensors do.
template <typename T> __global__ void __launch_bounds__(kSumThreads) backwardFeatureKernel(BackwardPass<T> p) {
    int64_t const size = p.features() * p.length, index = threadOfGrid();
    if (index < p.planes * size) {
        int64_t const plane = index / size, place = index % size;
        float sum = 0.F;
        for (int64_t block = 0; block < p.blocks; ++block) {
            sum += p.featureSums[(plane * p.blocks + block) * size + place];
        }
        int64_t const lows = p.rank * p.length, states = p.states * p.length;
        T* const target = place < lows            ? p.gradLow + place
                          : place < lows + states ? p.gradB + (place - lows)
                                                  : p.gradC + (place - lows - states);
        store(target + plane * p.featureStride, sum);
    }
}

// Chunks' parts into the gradients of A, D, the bias and dt_weight, over all images: four running sums, the chunks in
// turn.
template <typename T> __global__ void __launch_bounds__(kSumThreads) backwardParameterKernel(BackwardPass<T> p) {
    int64_t const size = p.parameters(), index = threadOfGrid();
    if (index >= p.groups * p.channels * size) {
        return;
    }
    int64_t const group = index / (p.channels * size), place = index % (p.channels * size);
    float sums[4] = {};
    for (int64_t plane = group; plane < p.planes; plane += p.groups) {
        float const* const parts = p.parameterSums + plane * p.chunks * p.channels * size + place;
        for (int64_t chunk = 0; chunk < p.chunks; chunk += 4) {
            MTMAMBA_UNROLL
            for (int j = 0; j < 4; ++j) {
                sums[j] += chunk + j < p.chunks ? parts[(chunk + j) * p.channels * size] : 0.F;
            }
        }
    }
    float const sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    int64_t const row = p.rowOf(group, place / size), i = place % size;
    if (i < p.states) {
        p.gradA[row * p.states + i] = sum;
    } else if (i == p.states) {
        p.gradD[row] = sum;
    } else if (i == p.states + 1) {
        p.gradBias[row] = sum;
    } else {
        p.gradWeight[row * p.rank + i - p.states - 2] = sum;
    }
}

// Launches the pass: neither allocates nor synchronises.
template <int kLanes, bool kMap, typename T>
cudaError_t launchBackwardPass(BackwardPass<T> const& p, cudaStream_t stream) {
    using Shape = BackwardShape<kLanes>;
    static_assert(sizeof(SummaryMemory<Shape>) <= kSharedBytes && sizeof(ChunkMemory<Shape>) <= kSharedBytes);
    cudaError_t error = cudaSuccess;
    auto const run = [&](void (*kernel)(BackwardPass<T>), int64_t blocks, unsigned threads, size_t bytes) {
        if (error == cudaSuccess) {
            error = blocks > INT32_MAX
                        ? cudaErrorInvalidValue
                        : launchBlocks(kernel, dim3(static_cast<unsigned>(blocks)), threads, bytes, stream, p);
        }
    };
    auto const sum = [&](void (*kernel)(BackwardPass<T>), int64_t threads) {
        run(kernel, ceilDivide(threads, kSumThreads), kSumThreads, 0);
    };
    int64_t const chunks = p.planes * p.chunks * p.blocks;
    if (p.chunks > 1) {
        run(backwardSummaryKernel<T, kLanes, kMap>, chunks, Shape::kThreads, sizeof(SummaryMemory<Shape>));
        sum(backwardCarryKernel<T>, 2 * p.planes * p.channels * p.states);
    }
    run(backwardChunkKernel<T, kLanes, kMap>, chunks, Shape::kThreads, sizeof(ChunkMemory<Shape>));
    sum(backwardFeatureKernel<T>, p.planes * p.features() * p.length);
    sum(backwardParameterKernel<T>, p.groups * p.channels * p.parameters());
    return error;
}

template <bool kMap, typename T> cudaError_t runBackwardPass(BackwardPass<T> const& p, cudaStream_t stream) {
    bool const held = p.planes > 0 && p.channels > 0 && p.length > 0 && p.states > 0 && p.states <= kMaxStates;
    if (!held) {
        return cudaErrorInvalidValue;
    }
    return p.states <= BackwardShape<1>::kStates   ? launchBackwardPass<1, kMap>(p, stream)
           : p.states <= BackwardShape<4>::kStates ? launchBackwardPass<4, kMap>(p, stream)
                                                   : launchBackwardPass<16, kMap>(p, stream);
}

} // namespace mtmamba::backward

#endif // MTMAMBA_SIMT
