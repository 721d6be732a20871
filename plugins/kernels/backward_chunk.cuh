// A chunk of tokens and a block of channels of the backward pass (backward_pass.cuh): its summary, and its gradients.
#pragma once

#include "kernels/backward_pass.cuh"
#include "kernels/backward_stage.cuh"

#ifdef MTMAMBA_SIMT

namespace mtmamba::backward {

// One thread's states of one channel.
template <typename Shape> struct LaneStates {
    int sub;           // which of the channel's lanes
    int channel;       // within the block
    float A[kPerLane]; // in units of ln 2
    float h[kPerLane];

    MTMAMBA_DEVICE LaneStates(float const* rowA, bool inside, int64_t states)
        : sub(static_cast<int>(threadIdx.x) % Shape::kLanes), channel(static_cast<int>(threadIdx.x) / Shape::kLanes) {
        MTMAMBA_UNROLL
        for (int i = 0; i < kPerLane; ++i) {
            A[i] = inside && state(i) < states ? rowA[state(i)] * kLog2OfE : 0.F;
            h[i] = 0.F;
        }
    }
    MTMAMBA_DEVICE int state(int i) const { return sub * kPerLane + i; }
};

// Where block `blockIdx.x` is at work: blocks of the same chunk next to each other, since they read the same features.
struct BlockPlace {
    int plane, chunk, block; // a grid has fewer than 2^31 blocks

    template <typename T> MTMAMBA_DEVICE explicit BlockPlace(BackwardPass<T> const& p) {
        unsigned const blocks = static_cast<unsigned>(p.blocks), chunks = static_cast<unsigned>(p.chunks);
        block = static_cast<int>(blockIdx.x % blocks);
        chunk = static_cast<int>(blockIdx.x / blocks % chunks);
        plane = static_cast<int>(blockIdx.x / blocks / chunks);
    }
    // Of the sums that every chunk keeps for every channel.
    template <typename T> MTMAMBA_DEVICE int64_t channel(BackwardPass<T> const& p, int c) const {
        return (plane * p.chunks + chunk) * p.channels + block * kBlockChannels + c;
    }
};

template <typename Shape> struct SummaryMemory {
    ChunkTensors<Shape> tensors;
    LowRankStage<Shape> lowRank;
};

// Step 1. From a state of zero: the last state, the decay over the chunk, and a g at its first token from its own dy.
template <typename T, int kLanes, bool kMap>
__global__ void __launch_bounds__(BackwardShape<kLanes>::kThreads, BackwardShape<kLanes>::kBlocks)
    backwardSummaryKernel(BackwardPass<T> p) {
    using Shape = BackwardShape<kLanes>;
    auto& shared = *static_cast<SummaryMemory<Shape>*>(sharedMemory());
    ChunkTensors<Shape>& s = shared.tensors;
    BlockPlace const at(p);
    int const channels = channelsOf(p, at.block);
    stageChunk<Shape, kMap>(p, at.plane, at.block, at.chunk, s, shared.lowRank);
    int const c = static_cast<int>(threadIdx.x) / kLanes;
    bool const inside = c < channels;
    int64_t const row = inside ? p.rowOf(at.plane, at.block * kBlockChannels + c) : 0;
    LaneStates<Shape> lane(p.A + row * p.states, inside, p.states);
    float decay[kPerLane], carry[kPerLane];
    MTMAMBA_UNROLL
    for (int i = 0; i < kPerLane; ++i) {
        decay[i] = 1.F;
        carry[i] = 0.F;
    }
    for (int t = 0; t < Shape::kChunk; ++t) {
        float const d = s.step[lane.channel][t], du = d * s.u[lane.channel][t], gy = s.gradY[lane.channel][t];
        MTMAMBA_UNROLL
        for (int i = 0; i < kPerLane; ++i) {
            float const a = exp2Approx(d * lane.A[i]);
            lane.h[i] = a * lane.h[i] + du * s.B[t][lane.state(i)];
            decay[i] *= a;
            carry[i] += gy * s.C[t][lane.state(i)] * decay[i];
        }
    }
    int64_t const out = at.channel(p, c) * p.states;
    MTMAMBA_UNROLL
    for (int i = 0; i < kPerLane; ++i) {
        if (inside && lane.state(i) < p.states) {
            p.starts[out + lane.state(i)] = lane.h[i];
            p.carries[out + lane.state(i)] = carry[i];
            p.decays[out + lane.state(i)] = decay[i];
        }
    }
}

// Sums over a warp's channels of each lane's 2 kPerLane values: lanes of a channel hold different states, so the sums
// scatter over the lanes. On return the first `count` of values are sums, of values `from` on.
template <typename Shape> struct ChannelSums {
    static constexpr int kChannelLanes = 32 / Shape::kLanes; // channels of a warp
    static constexpr int kCount = kChannelLanes >= 2 * kPerLane ? 1 : 2 * kPerLane / kChannelLanes;

    template <int kMask, int kHeld> static MTMAMBA_DEVICE int add(float (&values)[2 * kPerLane], int lane) {
        if constexpr (kMask < Shape::kLanes) {
            return 0;
        } else if constexpr (kHeld == 1) {
            values[0] += __shfl_xor_sync(~0U, values[0], kMask);
            return add<kMask / 2, 1>(values, lane);
        } else {
            bool const upper = (lane & kMask) != 0;
            MTMAMBA_UNROLL
            for (int j = 0; j < kHeld / 2; ++j) {
                float const sent = upper ? values[j] : values[j + kHeld / 2];
                float const kept = upper ? values[j + kHeld / 2] : values[j];
                values[j] = kept + __shfl_xor_sync(~0U, sent, kMask);
            }
            return (upper ? kHeld / 2 : 0) + add<kMask / 2, kHeld / 2>(values, lane);
        }
    }
    static MTMAMBA_DEVICE int add(float (&values)[2 * kPerLane], int lane) {
        return add<16, 2 * kPerLane>(values, lane);
    }
    // Where more lanes than values end with a sum, neighbours end with the same: one of them stores it.
    static MTMAMBA_DEVICE bool stores(int lane) {
        constexpr int kSame = kChannelLanes > 2 * kPerLane ? kChannelLanes / (2 * kPerLane) : 1;
        return lane % kSame == 0;
    }
};

template <typename Shape> struct ChunkMemory {
    ChunkTensors<Shape> tensors;
    BlockPlace place; // here, and not in registers, which the tiles need
    float starts[Shape::kChunk / kTile][kPerLane][Shape::kThreads];
    union {
        float sums[Shape::kWarps][Shape::kStage][2 * Shape::kStates + 1];
        LowRankStage<Shape> lowRank;
    };
};

// The sum over a channel's lanes, in each of them.
template <typename Shape> MTMAMBA_DEVICE float sumOfLanes(float value) {
    MTMAMBA_UNROLL
    for (int mask = Shape::kLanes / 2; mask > 0; mask /= 2) {
        value += __shfl_xor_sync(~0U, value, mask);
    }
    return value;
}

// Sums over the block's channels of B's and C's gradients, tokens `t` .. t + kStage of the chunk, to the block's part.
template <typename T, typename Shape>
MTMAMBA_DEVICE void storeFeatureSums(BackwardPass<T> const& p, BlockPlace const& at, ChunkMemory<Shape> const& memory,
                                     int t) {
    float* const part = p.featureSums + (at.plane * p.blocks + at.block) * p.features() * p.length;
    for (int item = static_cast<int>(threadIdx.x); item < Shape::kStage * 2 * Shape::kStates; item += Shape::kThreads) {
        int const i = item % Shape::kStage, value = item / Shape::kStage;
        int const n = value % Shape::kStates;
        float sum = 0.F;
        MTMAMBA_UNROLL
        for (int warp = 0; warp < Shape::kWarps; ++warp) {
            sum += memory.sums[warp][i][value];
        }
        if (n < p.states && int64_t{at.chunk} * Shape::kChunk + t + i < p.length) {
            int64_t const feature = p.rank + (value < Shape::kStates ? 0 : p.states) + n;
            part[feature * p.length + memory.tensors.pixel[t + i]] = sum;
        }
    }
}

// Back through kTile tokens from `t` on: u and step of the chunk become their gradients. carry: a g of the token
// behind.
template <typename T, typename Shape>
MTMAMBA_DEVICE void backwardTile(BackwardPass<T> const& p, BlockPlace const& at, ChunkMemory<Shape>& memory,
                                 LaneStates<Shape> const& lane, float skip, int first, float (&carry)[kPerLane],
                                 float (&gradA)[kPerLane]) {
    ChunkTensors<Shape>& s = memory.tensors;
    float states[kTile][kPerLane], decays[kTile][kPerLane]; // after every token; before the first: in shared memory
    float const(&start)[kPerLane][Shape::kThreads] = memory.starts[first / kTile];
    MTMAMBA_UNROLL
    for (int t = 0; t < kTile; ++t) {
        float const d = s.step[lane.channel][first + t], du = d * s.u[lane.channel][first + t];
        MTMAMBA_UNROLL
        for (int i = 0; i < kPerLane; ++i) {
            decays[t][i] = exp2Approx(d * lane.A[i]);
            float const before = t > 0 ? states[t > 0 ? t - 1 : 0][i] : start[i][threadIdx.x];
            states[t][i] = decays[t][i] * before + du * s.B[first + t][lane.state(i)];
        }
    }
    int const warpLane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    MTMAMBA_UNROLL
    for (int t = kTile - 1; t >= 0; --t) {
        float const d = s.step[lane.channel][first + t], u = s.u[lane.channel][first + t];
        float const gy = s.gradY[lane.channel][first + t], du = d * u;
        float gB = 0.F, gExponent = 0.F, values[2 * kPerLane];
        MTMAMBA_UNROLL
        for (int i = 0; i < kPerLane; ++i) {
            float const g = gy * s.C[first + t][lane.state(i)] + carry[i];
            values[i] = g * du;
            values[kPerLane + i] = states[t][i] * gy;
            gB += g * s.B[first + t][lane.state(i)];
            carry[i] = g * decays[t][i];
            float const before = t > 0 ? states[t > 0 ? t - 1 : 0][i] : start[i][threadIdx.x];
            float const exponent = carry[i] * before;
            gradA[i] += exponent * d;
            gExponent += exponent * lane.A[i];
        }
        gB = sumOfLanes<Shape>(gB);
        float const gStep = gB * u + sumOfLanes<Shape>(gExponent) * (1.F / kLog2OfE);
        __syncwarp(); // the channel's other lanes have read u and step
        if (lane.sub == 0) {
            s.u[lane.channel][first + t] = gB * d + skip * gy;
            s.step[lane.channel][first + t] = p.softplus ? gStep * -expm1f(-d) : gStep; // softplus' = 1 - e^-softplus
        }
        int const from = ChannelSums<Shape>::add(values, warpLane);
        if (ChannelSums<Shape>::stores(warpLane)) {
            MTMAMBA_UNROLL
            for (int j = 0; j < ChannelSums<Shape>::kCount; ++j) {
                int const value = from + j; // B's states, then C's
                memory.sums[warp][t % Shape::kStage][value / kPerLane * Shape::kStates + lane.state(value % kPerLane)] =
                    values[j];
            }
        }
        if (t % Shape::kStage == 0) {
            __syncthreads();
            storeFeatureSums(p, at, memory, first + t);
            __syncthreads();
        }
    }
}

// Step 3.
template <typename T, int kLanes, bool kMap>
__global__ void __launch_bounds__(BackwardShape<kLanes>::kThreads, BackwardShape<kLanes>::kBlocks)
    backwardChunkKernel(BackwardPass<T> p) {
    using Shape = BackwardShape<kLanes>;
    auto& memory = *static_cast<ChunkMemory<Shape>*>(sharedMemory());
    ChunkTensors<Shape>& s = memory.tensors;
    BlockPlace& at = memory.place;
    if (threadIdx.x == 0) {
        at = BlockPlace(p);
    }
    __syncthreads();
    int const channels = channelsOf(p, at.block);
    stageChunk<Shape, kMap>(p, at.plane, at.block, at.chunk, s, memory.lowRank);
    int const c = static_cast<int>(threadIdx.x) / kLanes;
    bool const inside = c < channels;
    int64_t const row = inside ? p.rowOf(at.plane, at.block * kBlockChannels + c) : 0;
    LaneStates<Shape> lane(p.A + row * p.states, inside, p.states);
    float const skip = inside ? p.D[row] : 0.F;
    float carry[kPerLane], gradA[kPerLane];
    int64_t const states = at.channel(p, c) * p.states;
    MTMAMBA_UNROLL
    for (int i = 0; i < kPerLane; ++i) {
        bool const held = inside && lane.state(i) < p.states && p.chunks > 1;
        lane.h[i] = held ? p.starts[states + lane.state(i)] : 0.F;
        carry[i] = held ? p.carries[states + lane.state(i)] : 0.F;
        gradA[i] = 0.F;
    }
    if (static_cast<int>(threadIdx.x) < channels) {
        float gradD = 0.F;
        for (int t = 0; t < Shape::kChunk; ++t) {
            gradD += s.gradY[threadIdx.x][t] * s.u[threadIdx.x][t];
        }
        p.parameterSums[at.channel(p, static_cast<int>(threadIdx.x)) * p.parameters() + p.states] = gradD;
    }
    __syncthreads(); // u is about to become its gradient
    for (int t = 0; t < Shape::kChunk; ++t) {
        if (t % kTile == 0) {
            MTMAMBA_UNROLL
            for (int i = 0; i < kPerLane; ++i) {
                memory.starts[t / kTile][i][threadIdx.x] = lane.h[i];
            }
        }
        if (t < Shape::kChunk - kTile) {
            float const d = s.step[lane.channel][t], du = d * s.u[lane.channel][t];
            MTMAMBA_UNROLL
            for (int i = 0; i < kPerLane; ++i) {
                lane.h[i] = exp2Approx(d * lane.A[i]) * lane.h[i] + du * s.B[t][lane.state(i)];
            }
        }
    }
    MTMAMBA_KEEP_LOOP
    for (int t = Shape::kChunk - kTile; t >= 0; t -= kTile) {
        backwardTile(p, at, memory, lane, skip, t, carry, gradA);
    }
    float* const sums = p.parameterSums + at.channel(p, 0) * p.parameters();
    MTMAMBA_UNROLL
    for (int i = 0; i < kPerLane; ++i) {
        if (inside && lane.state(i) < p.states) {
            sums[c * p.parameters() + lane.state(i)] = gradA[i];
        }
    }
    if (static_cast<int>(threadIdx.x) < channels) {
        float gradBias = 0.F;
        for (int t = 0; t < Shape::kChunk; ++t) {
            gradBias += s.step[threadIdx.x][t];
        }
        sums[threadIdx.x * p.parameters() + p.states + 1] = gradBias;
    }
    storeChunk<Shape, kMap>(p, at.plane, at.block, at.chunk, s);
    if constexpr (kMap) {
        storeLowRank<Shape>(p, at.plane, at.block, at.chunk, s, memory.lowRank, sums + p.states + 2);
    }
}

} // namespace mtmamba::backward

#endif // MTMAMBA_SIMT
