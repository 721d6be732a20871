// Between the tensors' layouts and lanes of channels. A block is kLanes channels of one group, the last one perhaps
// fewer: lanes past its end hold zeros and are never written back.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "cpu/simd.h"

namespace mtmamba::cpu {

inline int threadIndex() {
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

// Scratch memory for every thread, allocated before threads start: nothing throws among them.
class Scratch {
  public:
    Scratch(int threads, int64_t vectors) : mStride(vectors), mMemory(static_cast<size_t>(threads * vectors)) {}
    // The calling thread's.
    Vec* mine() { return mMemory.data() + threadIndex() * mStride; }

  private:
    int64_t mStride;
    std::vector<Vec> mMemory;
};

// lanes[t][lane] <- rows[lane][t], for `count` rows `stride` apart.
inline void toLanes(float const* rows, int64_t stride, int count, int64_t tokens, Vec* lanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
        for (int64_t t = 0; t < tokens; ++t) {
            lanes[t][lane] = lane < count ? rows[lane * stride + t] : 0.F;
        }
    }
}

// rows[lane][t] <- lanes[t][lane].
inline void fromLanes(Vec const* lanes, int64_t stride, int count, int64_t tokens, float* rows) {
    for (int lane = 0; lane < count; ++lane) {
        for (int64_t t = 0; t < tokens; ++t) {
            rows[lane * stride + t] = lanes[t][lane];
        }
    }
}

// A parameter's columns for a block: lanes[n] <- factor * rows[lane][n].
inline void loadParameter(float const* rows, int64_t columns, int count, float factor, Vec* lanes) {
    for (int64_t n = 0; n < columns; ++n) {
        Vec value{};
        for (int lane = 0; lane < count; ++lane) {
            value[lane] = factor * rows[lane * columns + n];
        }
        lanes[n] = value;
    }
}

inline void storeParameter(Vec const* lanes, int64_t columns, int count, float* rows) {
    for (int64_t n = 0; n < columns; ++n) {
        for (int lane = 0; lane < count; ++lane) {
            rows[lane * columns + n] = lanes[n][lane];
        }
    }
}

inline int64_t blocksOf(int64_t channels) { return (channels + kLanes - 1) / kLanes; }
inline int laneCount(int64_t channels, int64_t block) {
    return static_cast<int>(std::min<int64_t>(kLanes, channels - block * kLanes));
}

// A plane of features [F, H, W] -> [L, F], tokens in row order or column order.
inline void tokensFirst(float const* plane, int64_t features, int64_t height, int64_t width, bool columns,
                        float* tokens) {
    constexpr int64_t kTile = 16; // a cache line of pixels at once
    for (int64_t h = 0; h < height; ++h) {
        for (int64_t first = 0; first < width; first += kTile) {
            int64_t const last = std::min(first + kTile, width);
            for (int64_t f = 0; f < features; ++f) {
                float const* const row = plane + (f * height + h) * width;
                for (int64_t w = first; w < last; ++w) {
                    tokens[(columns ? w * height + h : h * width + w) * features + f] = row[w];
                }
            }
        }
    }
}

} // namespace mtmamba::cpu
