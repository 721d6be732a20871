// The gradients of SelectiveScan on the CPU: float32. The same bits whatever the number of threads.
//
// With g_t = dy_t C_t + a_{t+1} g_{t+1} the gradient of state h_t (a the decay), token by token from the last:
//   dC_t = sum over channels of h_t dy_t            dB_t = sum over channels of g_t d_t u_t
//   du_t = d_t (g_t . B_t) + D dy_t                 dd_t = u_t (g_t . B_t) + (g_t h_{t-1} a_t) . A
//   dA = sum over tokens of g_t h_{t-1} a_t d_t     dD = sum over tokens of dy_t u_t
// States are computed again tile by tile from those at the tiles' starts.
#pragma once

#include "cpu/scan.h"

namespace mtmamba::cpu {

// Contiguous tensors; each gradient has its tensor's shape. y's comes in.
struct ScanGradients {
    float const* y;
    float *u, *delta, *A, *B, *C, *D, *deltaBias;
};

constexpr int64_t kBackwardTile = 64; // tokens: a tile's states and decays stay in the second-level cache

// A block of channels at work: its parameters, its sums over tokens, and memory for one tile.
struct BackwardBlock {
    Vec A[kMaxStates], scaledA[kMaxStates], skip, bias;
    Vec carry[kMaxStates], gradA[kMaxStates], gradD, gradBias;
    Vec *u, *shifted, *step, *gy; // [tile]
    Vec *states, *decays, *gradB,
        *gradC;  // [tile + 1][N] (the state before the tile first), [tile][N], [N] padded twice
    Vec* starts; // [tiles][N]
    int count;

    // Before the first token of a scan.
    void clear(int states) {
        gradD = gradBias = Vec{};
        for (int n = 0; n < states; ++n) {
            carry[n] = gradA[n] = this->states[n] = Vec{};
        }
    }
};

inline int64_t tilesOf(int64_t length) { return (length + kBackwardTile - 1) / kBackwardTile; }

// Vectors that a block at work needs.
inline int64_t backwardScratch(int64_t states, int64_t length) {
    return kBackwardTile * (4 + 2 * states) + 3 * states + 2 * kLanes + tilesOf(length) * states;
}

inline void divide(BackwardBlock& block, int64_t states, int64_t length, Vec* memory) {
    auto const take = [&memory](int64_t vectors) {
        Vec* const taken = memory;
        memory += vectors;
        return taken;
    };
    block.u = take(kBackwardTile);
    block.shifted = take(kBackwardTile);
    block.step = take(kBackwardTile);
    block.gy = take(kBackwardTile);
    block.states = take((kBackwardTile + 1) * states);
    block.decays = take(kBackwardTile * states);
    block.gradB = take(states + kLanes);
    block.gradC = take(states + kLanes);
    block.starts = take(tilesOf(length) * states);
}

inline void loadTile(BackwardBlock& block, ScanTensors const& p, int64_t at, int64_t size) {
    toLanes(p.u + at, p.length, block.count, size, block.u);
    toLanes(p.delta + at, p.length, block.count, size, block.shifted);
    for (int64_t t = 0; t < size; ++t) {
        block.shifted[t] += block.bias;
        block.step[t] = p.deltaSoftplus ? softplus(block.shifted[t]) : block.shifted[t];
    }
}

// The states after every token of the tile, from states[0 .. N), with the decays that led there where kKeep.
// features: B of the first token, those of the next `stride` floats on (it may be negative).
template <int kStates, bool kKeep>
inline void forwardTile(BackwardBlock& block, float const* features, int64_t stride, int64_t size, int states) {
    int const count = kStates > 0 ? kStates : states;
    for (int64_t t = 0; t < size; ++t) {
        Vec const d = block.step[t], du = d * block.u[t];
        float const* const B = features + t * stride;
        Vec const* const before = block.states + (kKeep ? t * count : 0);
        Vec* const after = block.states + (kKeep ? (t + 1) * count : 0);
        for (int n = 0; n < count; ++n) {
            Vec const decay = VectorMath::decay(d * block.scaledA[n]);
            if (kKeep) {
                block.decays[t * count + n] = decay;
            }
            after[n] = decay * before[n] + du * B[n];
        }
    }
}

// gradients[n] += the sum over lanes of parts[n]; parts is padded to whole vectors and overwritten.
inline void addLaneSums(Vec* parts, int count, float* gradients) {
    for (int n = 0; n < count; n += kLanes) {
        Vec values[kLanes];
        for (int i = 0; i < kLanes; ++i) {
            values[i] = n + i < count ? parts[n + i] : Vec{};
        }
        Vec const sums = laneSums(values);
        for (int i = 0; i < kLanes && n + i < count; ++i) {
            gradients[n + i] += sums[i];
        }
    }
}

// From the tile's last token to its first. u and step become their gradients. features, gradients: B and then C of the
// first token, those of the next `stride` floats on.
template <int kStates>
inline void backwardTile(BackwardBlock& block, bool softplusOn, float const* features, float* gradients, int64_t stride,
                         int64_t size, int states) {
    int const count = kStates > 0 ? kStates : states;
    for (int64_t t = size - 1; t >= 0; --t) {
        Vec const d = block.step[t], u = block.u[t], gy = block.gy[t], du = d * u;
        float const *const B = features + t * stride, *const C = B + count;
        Vec const *const before = block.states + t * count, *const after = before + count;
        Vec gB{}, gExponent{};
        for (int n = 0; n < count; ++n) {
            Vec const g = gy * C[n] + block.carry[n];
            block.gradB[n] = g * du;
            block.gradC[n] = after[n] * gy;
            gB += g * B[n];
            block.carry[n] = g * block.decays[t * count + n];
            Vec const exponent = block.carry[n] * before[n];
            block.gradA[n] += exponent * d;
            gExponent += exponent * block.A[n];
        }
        addLaneSums(block.gradB, count, gradients + t * stride);
        addLaneSums(block.gradC, count, gradients + t * stride + count);
        Vec const gStep = gExponent + gB * u;
        Vec const gDelta = softplusOn ? gStep * sigmoid(block.shifted[t]) : gStep;
        block.gradD += gy * u;
        block.gradBias += gDelta;
        block.u[t] = gB * d + block.skip * gy;
        block.step[t] = gDelta;
    }
}

// The sums over tokens: gradients of A, D and delta_bias, of every channel `stride` floats apart.
inline void storeSums(BackwardBlock const& block, int states, int64_t stride, float* sums) {
    for (int lane = 0; lane < block.count; ++lane) {
        float* const own = sums + lane * stride;
        for (int n = 0; n < states; ++n) {
            own[n] = block.gradA[n][lane];
        }
        own[states] = block.gradD[lane];
        own[states + 1] = block.gradBias[lane];
    }
}

// Channels from `first` on of image `b`; features, gradients [L][2N]. perImage: gradients of A, D and delta_bias
// of this image, [D, N + 2].
template <int kStates>
inline void backwardBlock(BackwardBlock& block, ScanTensors const& p, ScanGradients const& out, float const* features,
                          float* gradients, int64_t b, int64_t first, float* perImage) {
    int const states = static_cast<int>(p.states);
    loadParameter(p.A + first * states, states, block.count, 1.F, block.A);
    loadParameter(p.A + first * states, states, block.count, kLog2E, block.scaledA);
    loadParameter(p.D + first, 1, block.count, 1.F, &block.skip);
    loadParameter(p.deltaBias + first, 1, block.count, 1.F, &block.bias);
    block.clear(states);
    int64_t const row = (b * p.channels + first) * p.length, stride = 2 * p.states, tiles = tilesOf(p.length);
    for (int64_t tile = 0; tile < tiles; ++tile) {
        int64_t const t = tile * kBackwardTile;
        std::copy_n(block.states, states, block.starts + tile * states);
        if (tile + 1 < tiles) {
            loadTile(block, p, row + t, kBackwardTile);
            forwardTile<kStates, false>(block, features + t * stride, stride, kBackwardTile, states);
        }
    }
    for (int64_t tile = tiles - 1; tile >= 0; --tile) {
        int64_t const t = tile * kBackwardTile, size = std::min(kBackwardTile, p.length - t);
        std::copy_n(block.starts + tile * states, states, block.states);
        loadTile(block, p, row + t, size);
        toLanes(out.y + row + t, p.length, block.count, size, block.gy);
        forwardTile<kStates, true>(block, features + t * stride, stride, size, states);
        backwardTile<kStates>(block, p.deltaSoftplus, features + t * stride, gradients + t * stride, stride, size,
                              states);
        fromLanes(block.u, p.length, block.count, size, out.u + row + t);
        fromLanes(block.step, p.length, block.count, size, out.delta + row + t);
    }
    storeSums(block, states, p.states + 2, perImage + (b * p.channels + first) * (p.states + 2));
}

// The images' sums into the gradients of A, D and delta_bias, in the images' order.
inline void addImages(ScanTensors const& p, ScanGradients const& out, std::vector<float> const& perImage) {
    for (int64_t c = 0; c < p.channels; ++c) {
        std::fill_n(out.A + c * p.states, p.states, 0.F);
        out.D[c] = out.deltaBias[c] = 0.F;
        for (int64_t b = 0; b < p.batch; ++b) {
            float const* const own = perImage.data() + (b * p.channels + c) * (p.states + 2);
            for (int64_t n = 0; n < p.states; ++n) {
                out.A[c * p.states + n] += own[n];
            }
            out.D[c] += own[p.states];
            out.deltaBias[c] += own[p.states + 1];
        }
    }
}

// parts [B * G, parts, L, 2N] into the gradients of B and C, the parts in their order.
inline void addParts(ScanTensors const& p, ScanGradients const& out, std::vector<float> const& all, int64_t parts,
                     int threads) {
    int64_t const size = p.length * 2 * p.states;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t group = 0; group < p.batch * p.groups; ++group) {
        for (int64_t n = 0; n < 2 * p.states; ++n) {
            float* const row = (n < p.states ? out.B : out.C) + (group * p.states + n % p.states) * p.length;
            for (int64_t t = 0; t < p.length; ++t) {
                float sum = 0.F;
                for (int64_t part = 0; part < parts; ++part) {
                    sum += all[static_cast<size_t>((group * parts + part) * size + t * 2 * p.states + n)];
                }
                row[t] = sum;
            }
        }
    }
}

// Tasks are parts of a group's blocks: all of them where there are groups enough, so that few sums are kept apart. The
// number of parts depends on the shapes alone.
inline int64_t partsOf(int64_t planes, int64_t blocks) {
    constexpr int64_t kTasks = 16;
    return std::clamp<int64_t>(kTasks / planes, 1, blocks);
}

inline void selectiveScanBackward(ScanTensors const& p, ScanGradients const& out, int threads) {
    int64_t const planes = p.batch * p.groups, blocks = blocksOf(p.groupChannels());
    int64_t const parts = partsOf(planes, blocks), size = p.length * 2 * p.states;
    std::vector<float> const tokens = projections(p, threads);
    std::vector<float> gradients(static_cast<size_t>(planes * parts * size));
    std::vector<float> perImage(static_cast<size_t>(p.batch * p.channels * (p.states + 2)));
    Scratch scratch(threads, backwardScratch(p.states, p.length));
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t task = 0; task < planes * parts; ++task) {
        int64_t const plane = task / parts, part = task % parts;
        BackwardBlock block;
        divide(block, p.states, p.length, scratch.mine());
        for (int64_t i = part * blocks / parts; i < (part + 1) * blocks / parts; ++i) {
            block.count = laneCount(p.groupChannels(), i);
            int64_t const first = plane % p.groups * p.groupChannels() + i * kLanes;
            auto const run = p.states == kFastStates ? backwardBlock<kFastStates> : backwardBlock<0>;
            run(block, p, out, tokens.data() + plane * size, gradients.data() + task * size, plane / p.groups, first,
                perImage.data());
        }
    }
    addImages(p, out, perImage);
    addParts(p, out, gradients, parts, threads);
}

} // namespace mtmamba::cpu
