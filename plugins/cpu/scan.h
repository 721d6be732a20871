// SelectiveScan on the CPU: float32, a block of channels to a task. The same bits whatever the number of threads.
#pragma once

#include <cstdint>

#include "cpu/tiles.h"
#include "kernels/step.h"

namespace mtmamba::cpu {

// Contiguous tensors, shapes as in kernels/selective_scan.cuh.
struct ScanTensors {
    float const *u, *delta, *A, *B, *C, *D, *deltaBias;
    int64_t batch, channels, groups, states, length;
    bool deltaSoftplus;

    int64_t groupChannels() const { return channels / groups; }
};

// B and C of every token side by side: [B * G, L, 2N].
inline std::vector<float> projections(ScanTensors const& p, int threads) {
    int64_t const features = 2 * p.states, planes = p.batch * p.groups;
    std::vector<float> tokens(static_cast<size_t>(planes * p.length * features));
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t plane = 0; plane < planes; ++plane) {
        float* const target = tokens.data() + plane * p.length * features;
        for (int64_t n = 0; n < p.states; ++n) {
            int64_t const row = (plane * p.states + n) * p.length;
            for (int64_t t = 0; t < p.length; ++t) {
                target[t * features + n] = p.B[row + t];
                target[t * features + p.states + n] = p.C[row + t];
            }
        }
    }
    return tokens;
}

constexpr int64_t kScanTile = 128; // tokens: u, delta and y of a block stay in the first-level cache

// One tile: u, delta (y in its place on return) [tokens][lane], features [tokens][2N]; h the states.
template <int kStates>
inline void scanTile(Vec const* A, Vec skip, Vec bias, bool softplusOn, Vec const* u, Vec* delta, float const* features,
                     int64_t tokens, int states, Vec* h) {
    int const count = kStates > 0 ? kStates : states;
    for (int64_t t = 0; t < tokens; ++t) {
        Vec const input = u[t];
        Vec const shifted = delta[t] + bias;
        Vec const d = softplusOn ? softplus(shifted) : shifted;
        Vec const du = d * input;
        float const* const B = features + t * 2 * count;
        Vec sum{};
        for (int n = 0; n < count; ++n) {
            advance<VectorMath>(h[n], sum, d * A[n], du, B[n], B[count + n]);
        }
        delta[t] = sum + skip * input;
    }
}

// Block `block` of group `g` of image `b`. scratch: 2 * kScanTile vectors.
inline void scanBlock(ScanTensors const& p, float const* tokens, int64_t b, int64_t g, int64_t block, Vec* scratch,
                      float* y) {
    int64_t const first = g * p.groupChannels() + block * kLanes;
    int const count = laneCount(p.groupChannels(), block), states = static_cast<int>(p.states);
    Vec *const u = scratch, *const delta = scratch + kScanTile;
    Vec A[kMaxStates], h[kMaxStates] = {}, skip, bias;
    loadParameter(p.A + first * states, states, count, kLog2E, A);
    loadParameter(p.D + first, 1, count, 1.F, &skip);
    loadParameter(p.deltaBias + first, 1, count, 1.F, &bias);
    float const* const features = tokens + (b * p.groups + g) * p.length * 2 * states;
    for (int64_t t = 0; t < p.length; t += kScanTile) {
        int64_t const size = std::min(kScanTile, p.length - t), at = (b * p.channels + first) * p.length + t;
        toLanes(p.u + at, p.length, count, size, u);
        toLanes(p.delta + at, p.length, count, size, delta);
        auto const tile = states == kFastStates ? scanTile<kFastStates> : scanTile<0>;
        tile(A, skip, bias, p.deltaSoftplus, u, delta, features + t * 2 * states, size, states, h);
        fromLanes(delta, p.length, count, size, y + at);
    }
}

inline void selectiveScan(ScanTensors const& p, float* y, int threads) {
    std::vector<float> const tokens = projections(p, threads);
    Scratch scratch(threads, 2 * kScanTile);
    int64_t const blocks = blocksOf(p.groupChannels());
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t task = 0; task < p.batch * p.groups * blocks; ++task) {
        int64_t const group = task / blocks;
        scanBlock(p, tokens.data(), group / p.groups, group % p.groups, task % blocks, scratch.mine(), y);
    }
}

} // namespace mtmamba::cpu
