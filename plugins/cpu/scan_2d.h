// SelectiveScan2D on the CPU: float32, a block of channels to a task, its four directions one after another.
#pragma once

#include <cstdint>

#include "cpu/tiles.h"
#include "kernels/step.h"

namespace mtmamba::cpu {

// Contiguous tensors, shapes as in kernels/selective_scan_2d.cuh.
struct MapTensors {
    float const *x, *xDbl, *dtWeight, *dtBias, *A, *D;
    int64_t batch, groups, channels, height, width, rank, states;

    int64_t length() const { return height * width; }
    int64_t features() const { return rank + 2 * states; }
};

// Parameters of one direction for a block of channels.
struct DirectionParameters {
    Vec A[kMaxStates], skip, bias;
    Vec const* weight; // [R]
};

// Pixels ahead that are fetched into the cache: a column's next pixel lies a row away, where no prefetcher looks.
constexpr int64_t kAhead = 6;

// One direction. x, y [pixel][lane]; features [L][R+2N], in row order for rows and column order for columns.
template <int kStates>
inline void scanDirection(MapTensors const& p, DirectionParameters const& q, int direction, float const* features,
                          Vec const* x, Vec* y) {
    int const count = kStates > 0 ? kStates : static_cast<int>(p.states);
    int64_t const length = p.length(), stride = p.features();
    Vec h[kMaxStates];
    for (int n = 0; n < count; ++n) {
        h[n] = Vec{};
    }
    for (int64_t t = 0; t < length; ++t) {
        int64_t const token = direction >= 2 ? length - 1 - t : t;
        int64_t const at = pixelOf(direction, t, p.height, p.width);
        int64_t const next = pixelOf(direction, std::min(t + kAhead, length - 1), p.height, p.width);
        __builtin_prefetch(x + next);
        __builtin_prefetch(y + next, 1);
        float const* const low = features + token * stride;
        float const *const B = low + p.rank, *const C = B + count;
        Vec shifted = q.bias;
        for (int64_t r = 0; r < p.rank; ++r) {
            shifted += q.weight[r] * low[r];
        }
        Vec const input = x[at], d = softplus(shifted), du = d * input;
        Vec sum{};
        for (int n = 0; n < count; ++n) {
            advance<VectorMath>(h[n], sum, d * q.A[n], du, B[n], C[n]);
        }
        Vec const value = sum + q.skip * input;
        y[at] = direction == 0 ? value : y[at] + value;
    }
}

// Vectors that one task needs: x and y of its channels, dt_weight.
inline int64_t mapScratch(MapTensors const& p) { return 2 * p.length() + p.rank; }

// Channels `block` of image `image` = b * G + g. tokens [B * G, K, L, R+2N].
inline void scanMapBlock(MapTensors const& p, float const* tokens, int64_t image, int64_t block, Vec* scratch,
                         float* result) {
    int64_t const length = p.length(), first = block * kLanes;
    int const count = laneCount(p.channels, block), states = static_cast<int>(p.states);
    Vec *const x = scratch, *const y = x + length, *const weight = y + length;
    toLanes(p.x + (image * p.channels + first) * length, length, count, length, x);
    DirectionParameters q;
    for (int k = 0; k < kDirections; ++k) {
        int64_t const row = (image % p.groups * kDirections + k) * p.channels + first;
        loadParameter(p.A + row * states, states, count, kLog2E, q.A);
        loadParameter(p.D + row, 1, count, 1.F, &q.skip);
        loadParameter(p.dtBias + row, 1, count, 1.F, &q.bias);
        loadParameter(p.dtWeight + row * p.rank, p.rank, count, 1.F, weight);
        q.weight = weight;
        auto const scan = states == kFastStates ? scanDirection<kFastStates> : scanDirection<0>;
        scan(p, q, k, tokens + (image * kDirections + k) * length * p.features(), x, y);
    }
    for (int64_t pixel = 0; pixel < length; ++pixel) {
        std::memcpy(result + (image * length + pixel) * p.channels + first, y + pixel,
                    static_cast<size_t>(count) * sizeof(float));
    }
}

// x_dbl token by token: [B * G, K, L, R+2N], in row order for rows and column order for columns.
inline std::vector<float> mapTokens(MapTensors const& p, int threads) {
    int64_t const planes = p.batch * p.groups * kDirections, size = p.features() * p.length();
    std::vector<float> tokens(static_cast<size_t>(planes * size));
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t plane = 0; plane < planes; ++plane) {
        bool const columns = plane % 2 == 1;
        tokensFirst(p.xDbl + plane * size, p.features(), p.height, p.width, columns, tokens.data() + plane * size);
    }
    return tokens;
}

inline void selectiveScan2D(MapTensors const& p, float* y, int threads) {
    std::vector<float> const tokens = mapTokens(p, threads);
    Scratch scratch(threads, mapScratch(p));
    int64_t const blocks = blocksOf(p.channels);
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t task = 0; task < p.batch * p.groups * blocks; ++task) {
        scanMapBlock(p, tokens.data(), task / blocks, task % blocks, scratch.mine(), y);
    }
}

} // namespace mtmamba::cpu
