// Between the tensors and a chunk of tokens of a block of channels (backward_chunk.cuh). All is float32 and zero past
// the last token, channel and state: zeros leave states, gradients and sums as they are, so that nothing else minds the
// ends.
#pragma once

#include "kernels/backward_pass.cuh"
#include "kernels/math.cuh"

#ifdef MTMAMBA_SIMT

namespace mtmamba::backward {

template <typename Shape> struct ChunkTensors {
    alignas(16) float B[Shape::kChunk][Shape::kStates];
    alignas(16) float C[Shape::kChunk][Shape::kStates];
    float u[kBlockChannels][Shape::kChunk + 1]; // + 1: the lanes of a warp hit different banks along both dimensions
    float step[kBlockChannels][Shape::kChunk + 1];
    float gradY[kBlockChannels][Shape::kChunk + 1];
    int64_t pixel[Shape::kChunk];
};

// Some ranks of the low-rank step and their weights.
template <typename Shape> struct LowRankStage {
    static constexpr int kRanks = 16, kTogether = 4; // ranks or channels to a thread
    float low[kRanks][Shape::kChunk];
    float weight[kRanks][kBlockChannels + 1];
};

template <typename T> MTMAMBA_DEVICE int channelsOf(BackwardPass<T> const& p, int64_t block) {
    int64_t const left = p.channels - block * kBlockChannels;
    return left < kBlockChannels ? static_cast<int>(left) : kBlockChannels;
}
template <typename T> MTMAMBA_DEVICE int tokensOf(BackwardPass<T> const& p, int64_t chunk) {
    int64_t const left = p.length - chunk * p.chunk;
    return static_cast<int>(left < p.chunk ? left : p.chunk);
}

// Ranks `first` .. first + kRanks: low [rank][token] and weight [rank][channel].
template <typename Shape, typename T>
MTMAMBA_DEVICE void stageLowRank(BackwardPass<T> const& p, int64_t plane, int64_t block, int64_t chunk, int64_t first,
                                 ChunkTensors<Shape> const& s, LowRankStage<Shape>& stage) {
    constexpr int kRanks = LowRankStage<Shape>::kRanks;
    int const tokens = tokensOf(p, chunk), channels = channelsOf(p, block);
    int64_t const row = p.rowOf(plane, block * kBlockChannels);
    for (int item = static_cast<int>(threadIdx.x); item < kRanks * Shape::kChunk; item += Shape::kThreads) {
        int const r = item / Shape::kChunk, t = item % Shape::kChunk;
        bool const held = first + r < p.rank && t < tokens;
        stage.low[r][t] = held ? toFloat(p.low[plane * p.featureStride + (first + r) * p.length + s.pixel[t]]) : 0.F;
    }
    for (int item = static_cast<int>(threadIdx.x); item < kRanks * kBlockChannels; item += Shape::kThreads) {
        int const r = item % kRanks, c = item / kRanks;
        bool const held = first + r < p.rank && c < channels;
        stage.weight[r][c] = held ? p.weight[(row + c) * p.rank + first + r] : 0.F;
    }
}

// step += weight . low, for every channel and token of the chunk.
template <typename Shape, typename T>
MTMAMBA_DEVICE void addLowRank(BackwardPass<T> const& p, int64_t plane, int64_t block, int64_t chunk,
                               ChunkTensors<Shape>& s, LowRankStage<Shape>& stage) {
    constexpr int kTogether = LowRankStage<Shape>::kTogether;
    for (int64_t first = 0; first < p.rank; first += LowRankStage<Shape>::kRanks) {
        __syncthreads();
        stageLowRank(p, plane, block, chunk, first, s, stage);
        __syncthreads();
        for (int item = static_cast<int>(threadIdx.x); item < kBlockChannels / kTogether * Shape::kChunk;
             item += Shape::kThreads) {
            int const t = item % Shape::kChunk, c = item / Shape::kChunk * kTogether;
            float sums[kTogether] = {};
            for (int r = 0; r < LowRankStage<Shape>::kRanks; ++r) {
                MTMAMBA_UNROLL
                for (int j = 0; j < kTogether; ++j) {
                    sums[j] += stage.weight[r][c + j] * stage.low[r][t];
                }
            }
            MTMAMBA_UNROLL
            for (int j = 0; j < kTogether; ++j) {
                s.step[c + j][t] += sums[j];
            }
        }
    }
    __syncthreads();
}

// Everything of a chunk; threads may read it on return.
template <typename Shape, bool kMap, typename T>
MTMAMBA_DEVICE void stageChunk(BackwardPass<T> const& p, int64_t plane, int64_t block, int64_t chunk,
                               ChunkTensors<Shape>& s, LowRankStage<Shape>& lowRank) {
    int const thread = static_cast<int>(threadIdx.x);
    int const tokens = tokensOf(p, chunk), channels = channelsOf(p, block);
    for (int t = thread; t < Shape::kChunk; t += Shape::kThreads) {
        s.pixel[t] = t < tokens ? pixelOf(p.direction, chunk * Shape::kChunk + t, p.height, p.width) : 0;
    }
    __syncthreads();
    int64_t const firstChannel = block * kBlockChannels, row = p.rowOf(plane, firstChannel);
    for (int item = thread; item < kBlockChannels * Shape::kChunk; item += Shape::kThreads) {
        int const c = item / Shape::kChunk, t = item % Shape::kChunk;
        bool const held = c < channels && t < tokens;
        int64_t const source = (plane * p.channels + firstChannel + c) * p.length + s.pixel[t];
        s.u[c][t] = held ? toFloat(p.u[source]) : 0.F;
        s.step[c][t] = held ? p.bias[row + c] + (kMap ? 0.F : toFloat(p.delta[source])) : 0.F;
    }
    for (int item = thread; item < kBlockChannels * Shape::kChunk; item += Shape::kThreads) {
        // Neighbouring lanes read neighbouring addresses: channels of a map, tokens of a sequence.
        int const c = kMap ? item % kBlockChannels : item / Shape::kChunk;
        int const t = kMap ? item / kBlockChannels : item % Shape::kChunk;
        int64_t const source = plane * p.gradYPlane + (firstChannel + c) * p.gradYChannel + s.pixel[t] * p.gradYPixel;
        s.gradY[c][t] = c < channels && t < tokens ? toFloat(p.gradY[source]) : 0.F;
    }
    for (int item = thread; item < Shape::kStates * Shape::kChunk; item += Shape::kThreads) {
        int const n = item / Shape::kChunk, t = item % Shape::kChunk;
        bool const held = n < p.states && t < tokens;
        int64_t const source = plane * p.featureStride + n * p.length + s.pixel[t];
        s.B[t][n] = held ? toFloat(p.B[source]) : 0.F;
        s.C[t][n] = held ? toFloat(p.C[source]) : 0.F;
    }
    if constexpr (kMap) {
        addLowRank(p, plane, block, chunk, s, lowRank);
    } else {
        __syncthreads();
    }
    if (p.softplus) {
        for (int item = thread; item < kBlockChannels * Shape::kChunk; item += Shape::kThreads) {
            int const c = item / Shape::kChunk, t = item % Shape::kChunk;
            bool const held = c < channels && t < tokens;
            s.step[c][t] = held ? DeviceMath::softplus(s.step[c][t]) : 0.F;
        }
        __syncthreads();
    }
}

// The gradients that took the places of u and the step. Over several orders u's add up in sumU.
template <typename Shape, bool kMap, typename T>
MTMAMBA_DEVICE void storeChunk(BackwardPass<T> const& p, int64_t plane, int64_t block, int64_t chunk,
                               ChunkTensors<Shape> const& s) {
    int const tokens = tokensOf(p, chunk), channels = channelsOf(p, block);
    for (int item = static_cast<int>(threadIdx.x); item < kBlockChannels * Shape::kChunk; item += Shape::kThreads) {
        int const c = item / Shape::kChunk, t = item % Shape::kChunk;
        if (c < channels && t < tokens) {
            int64_t const target = (plane * p.channels + block * kBlockChannels + c) * p.length + s.pixel[t];
            float const sum = p.first ? s.u[c][t] : p.sumU[target] + s.u[c][t];
            if (p.last) {
                store(p.gradU + target, sum);
            } else {
                p.sumU[target] = sum;
            }
            if constexpr (!kMap) {
                store(p.gradDelta + target, s.step[c][t]);
            }
        }
    }
}

// From the raw step's gradient: the block's part of the sums over channels that make low's, and the chunk's part of
// dt_weight's, from `weights` on, a channel's `parameters` apart.
template <typename Shape, typename T>
MTMAMBA_DEVICE void storeLowRank(BackwardPass<T> const& p, int64_t plane, int64_t block, int64_t chunk,
                                 ChunkTensors<Shape> const& s, LowRankStage<Shape>& stage, float* weights) {
    constexpr int kRanks = LowRankStage<Shape>::kRanks, kTogether = LowRankStage<Shape>::kTogether;
    int const tokens = tokensOf(p, chunk), channels = channelsOf(p, block);
    float* const part = p.featureSums + (plane * p.blocks + block) * p.features() * p.length;
    for (int64_t first = 0; first < p.rank; first += kRanks) {
        __syncthreads();
        stageLowRank(p, plane, block, chunk, first, s, stage);
        __syncthreads();
        for (int item = static_cast<int>(threadIdx.x); item < kRanks / kTogether * Shape::kChunk;
             item += Shape::kThreads) {
            int const t = item % Shape::kChunk, r = item / Shape::kChunk * kTogether;
            float sums[kTogether] = {};
            for (int c = 0; c < kBlockChannels; ++c) {
                MTMAMBA_UNROLL
                for (int j = 0; j < kTogether; ++j) {
                    sums[j] += stage.weight[r + j][c] * s.step[c][t];
                }
            }
            MTMAMBA_UNROLL
            for (int j = 0; j < kTogether; ++j) {
                if (t < tokens && first + r + j < p.rank) {
                    part[(first + r + j) * p.length + s.pixel[t]] = sums[j];
                }
            }
        }
        for (int item = static_cast<int>(threadIdx.x); item < kRanks / kTogether * kBlockChannels;
             item += Shape::kThreads) {
            int const c = item % kBlockChannels, r = item / kBlockChannels * kTogether;
            float sums[kTogether] = {};
            for (int t = 0; t < Shape::kChunk; ++t) {
                MTMAMBA_UNROLL
                for (int j = 0; j < kTogether; ++j) {
                    sums[j] += stage.low[r + j][t] * s.step[c][t];
                }
            }
            MTMAMBA_UNROLL
            for (int j = 0; j < kTogether; ++j) {
                if (c < channels && first + r + j < p.rank) {
                    weights[c * p.parameters() + first + r + j] = sums[j];
                }
            }
        }
    }
}

} // namespace mtmamba::backward

#endif // MTMAMBA_SIMT
