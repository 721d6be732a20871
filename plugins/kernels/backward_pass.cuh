// What the gradients of both operators have in common: one pass over the tokens of all planes, in one order.
//
// A plane is an image's group: `channels` recurrences that share B and C. With g_t = dy_t C_t + a_{t+1} g_{t+1} the
// gradient of state h_t (a_t = exp(d_t A) the decay):
//   dC_t = sum over channels of h_t dy_t            dB_t = sum over channels of g_t d_t u_t
//   du_t = d_t (g_t . B_t) + D dy_t                 dd_t = u_t (g_t . B_t) + (g_t h_{t-1} a_t) . A
//   dA = sum over tokens of g_t h_{t-1} a_t d_t     dD = sum over tokens of dy_t u_t
// The tokens are cut into chunks, and every chunk of 32 channels is a block of threads, in three steps:
//   1. summary (backward_chunk.cuh): from zero, the chunk's last state, its decay, and the a g it hands to the tokens
//   before;
//   2. carry (backward_sums.cuh): along the chunks, the true state each starts from and the true a g behind it;
//   3. gradients (backward_chunk.cuh): states once more from the true start, then back through the chunk.
// Sums over channels and over tokens leave a block as its own part, and parts are added in a fixed order
// (backward_sums.cuh): the same bits in every run, on every device. Docs: docs/kernels-backward.md.
#pragma once

#include "kernels/simt.cuh"

// A loop of long bodies that is to stay one: unrolled, it would hold more than the registers can.
#ifdef __CUDA_ARCH__
#define MTMAMBA_KEEP_LOOP _Pragma("unroll 1")
#else
#define MTMAMBA_KEEP_LOOP
#endif

namespace mtmamba::backward {

// How a plane is cut. A channel's states lie kPerLane to a thread, in kLanes neighbouring lanes of a warp.
constexpr int kPerLane = 4;
constexpr int kBlockChannels = 32;
constexpr int kTile = 8; // tokens whose states and decays are in registers

template <int kLanesOfChannel> struct BackwardShape {
    static constexpr int kLanes = kLanesOfChannel; // 1, 4 or 16: up to 4, 16 or 64 states
    static constexpr int kThreads = kBlockChannels * kLanes;
    static constexpr int kBlocks = 512 / kThreads; // that a multiprocessor shall hold: 128 registers a thread
    static constexpr int kWarps = kLanes;
    static constexpr int kStates = kPerLane * kLanes;
    static constexpr int kChunk = kLanes == 16 ? 16 : 32;   // tokens; the tensors of a chunk fit into 48 KiB
    static constexpr int kStage = kLanes == 16 ? 2 : kTile; // tokens whose sums over channels meet at a time
};

inline int64_t chunkOf(int64_t states) { return states > 16 ? BackwardShape<16>::kChunk : BackwardShape<4>::kChunk; }
MTMAMBA_HOST_DEVICE inline int64_t ceilDivide(int64_t a, int64_t b) { return (a + b - 1) / b; }

// One order of the tokens. Planes lie one after another in every tensor but where a stride says otherwise.
template <typename T> struct BackwardPass {
    T const* u;     // [planes, channels, L]
    T const* delta; // like u; unused where the step has a low rank
    T const* low;   // [rank, L] of a plane, planes featureStride apart, as B and C
    T const* B;     // [N, L]
    T const* C;     // [N, L]
    float const* A; // [rows, N]; row: plane % groups * rowStride + channel
    float const* D; // [rows]
    float const* bias;
    float const* weight; // [rows, rank]
    T const* gradY;      // strides below
    T* gradU;
    T* gradDelta;
    T* gradLow; // strides as low, B and C
    T* gradB;
    T* gradC;
    float* gradA; // strides as A, D, bias and weight
    float* gradD;
    float* gradBias;
    float* gradWeight;
    float* sumU; // like u: u's gradient over the orders so far
    int64_t planes, groups, channels, length, states, rank;
    int64_t height, width; // of the map whose pixels `direction` visits; 1 and L for plain tokens
    int64_t featureStride, rowStride, gradYChannel, gradYPixel, gradYPlane;
    int direction;
    bool softplus, first, last; // the first and last order of all
    int64_t chunk, chunks, blocks;
    float* starts;        // [planes, chunks, channels, N]: a chunk's last state, then the state it starts from
    float* carries;       // the same for what the chunks behind hand on
    float* decays;        // the same for the decay over the chunk
    float* featureSums;   // [planes, blocks, rank + 2N, L], tokens where their pixels are
    float* parameterSums; // [planes, chunks, channels, N + 2 + rank]: A, D, bias, weight

    MTMAMBA_HOST_DEVICE int64_t features() const { return rank + 2 * states; }
    MTMAMBA_HOST_DEVICE int64_t parameters() const { return states + 2 + rank; }
    MTMAMBA_HOST_DEVICE int64_t rowOf(int64_t plane, int64_t channel) const {
        return plane % groups * rowStride + channel;
    }
};

// What a pass needs beside the tensors, in floats.
struct BackwardWorkspace {
    int64_t states, features, parameters;

    BackwardWorkspace(int64_t planes, int64_t channels, int64_t length, int64_t rank, int64_t n) {
        int64_t const chunks = ceilDivide(length, chunkOf(n)), blocks = ceilDivide(channels, kBlockChannels);
        states = planes * chunks * channels * n;
        features = planes * blocks * (rank + 2 * n) * length;
        parameters = planes * chunks * channels * (n + 2 + rank);
    }
    int64_t floats() const { return 3 * states + features + parameters; }
};

// Fills in how `p` is cut and where its sums lie; answers the first float past them.
template <typename T> float* divideWorkspace(BackwardPass<T>& p, float* memory) {
    BackwardWorkspace const size(p.planes, p.channels, p.length, p.rank, p.states);
    p.chunk = chunkOf(p.states);
    p.chunks = ceilDivide(p.length, p.chunk);
    p.blocks = ceilDivide(p.channels, kBlockChannels);
    p.starts = memory;
    p.carries = p.starts + size.states;
    p.decays = p.carries + size.states;
    p.featureSums = p.decays + size.states;
    p.parameterSums = p.featureSums + size.features;
    return memory + size.floats();
}

constexpr float kLog2OfE = 1.44269504F;

} // namespace mtmamba::backward
