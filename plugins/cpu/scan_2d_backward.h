// The gradients of SelectiveScan2D on the CPU: float32. The same bits whatever the number of threads.
//
// Every direction is a scan over its own order of the pixels (scan_backward.h), whose step is dt_weight . low +
// dt_bias:
//   d low = sum over channels of dt_weight d step      d dt_weight = sum over tokens of low d step
// Gradients of x add up over the directions, those of x_dbl over the channels.
#pragma once

#include "cpu/scan_2d.h"
#include "cpu/scan_backward.h"

namespace mtmamba::cpu {

// Contiguous tensors; each gradient has its tensor's shape. y's comes in.
struct MapGradients {
    float const* y;
    float *x, *xDbl, *dtWeight, *dtBias, *A, *D;
};

// A block of channels at work on a map: one direction's parameters and sums, and the maps of all four.
struct MapBackwardBlock {
    BackwardBlock scan;
    Vec *x, *gradX, *gradY;             // [pixel]
    Vec *weight, *gradWeight, *gradLow; // [R], the last padded
};

inline int64_t mapBackwardScratch(MapTensors const& p) {
    return backwardScratch(p.states, p.length()) + 3 * p.length() + 3 * p.rank + kLanes;
}

inline void divide(MapBackwardBlock& block, MapTensors const& p, Vec* memory) {
    int64_t const length = p.length();
    divide(block.scan, p.states, length, memory);
    block.x = memory + backwardScratch(p.states, length);
    block.gradX = block.x + length;
    block.gradY = block.gradX + length;
    block.weight = block.gradY + length;
    block.gradWeight = block.weight + p.rank;
    block.gradLow = block.gradWeight + p.rank;
}

// One direction's tokens from step t on: the features of the first, and the distance to the next one's.
struct TokenRun {
    int64_t first, stride;
};

inline TokenRun runFrom(MapTensors const& p, int direction, int64_t t) {
    int64_t const size = p.features();
    return direction >= 2 ? TokenRun{(p.length() - 1 - t) * size, -size} : TokenRun{t * size, size};
}

// u, the step and y's gradient of the steps t .. t + size of a direction. low: that of the first.
inline void loadTile(MapBackwardBlock& block, MapTensors const& p, int direction, float const* low, int64_t stride,
                     int64_t t, int64_t size) {
    BackwardBlock& scan = block.scan;
    for (int64_t i = 0; i < size; ++i) {
        int64_t const pixel = pixelOf(direction, t + i, p.height, p.width);
        scan.u[i] = block.x[pixel];
        scan.gy[i] = block.gradY[pixel];
        Vec shifted = scan.bias;
        for (int64_t r = 0; r < p.rank; ++r) {
            shifted += block.weight[r] * low[i * stride + r];
        }
        scan.shifted[i] = shifted;
        scan.step[i] = softplus(shifted);
    }
}

// From the gradients of u and the raw step that a tile left: those of x, low and dt_weight.
inline void storeTile(MapBackwardBlock& block, MapTensors const& p, int direction, float const* low, float* gradients,
                      int64_t stride, int64_t t, int64_t size) {
    for (int64_t i = 0; i < size; ++i) {
        Vec const gStep = block.scan.step[i];
        block.gradX[pixelOf(direction, t + i, p.height, p.width)] += block.scan.u[i];
        for (int64_t r = 0; r < p.rank; ++r) {
            block.gradLow[r] = block.weight[r] * gStep;
            block.gradWeight[r] += gStep * low[i * stride + r];
        }
        addLaneSums(block.gradLow, static_cast<int>(p.rank), gradients + i * stride);
    }
}

// features, gradients [L][R+2N], in row order for rows and column order for columns.
template <int kStates>
inline void backwardDirection(MapBackwardBlock& block, MapTensors const& p, int direction, float const* features,
                              float* gradients) {
    BackwardBlock& scan = block.scan;
    int const states = static_cast<int>(p.states);
    int64_t const length = p.length(), tiles = tilesOf(length);
    scan.clear(states);
    std::fill_n(block.gradWeight, p.rank, Vec{});
    for (int64_t tile = 0; tile < tiles; ++tile) {
        int64_t const t = tile * kBackwardTile;
        std::copy_n(scan.states, states, scan.starts + tile * states);
        if (tile + 1 < tiles) {
            TokenRun const run = runFrom(p, direction, t);
            loadTile(block, p, direction, features + run.first, run.stride, t, kBackwardTile);
            forwardTile<kStates, false>(scan, features + run.first + p.rank, run.stride, kBackwardTile, states);
        }
    }
    for (int64_t tile = tiles - 1; tile >= 0; --tile) {
        int64_t const t = tile * kBackwardTile, size = std::min(kBackwardTile, length - t);
        TokenRun const run = runFrom(p, direction, t);
        float const* const low = features + run.first;
        float* const gradLow = gradients + run.first;
        std::copy_n(scan.starts + tile * states, states, scan.states);
        loadTile(block, p, direction, low, run.stride, t, size);
        forwardTile<kStates, true>(scan, low + p.rank, run.stride, size, states);
        backwardTile<kStates>(scan, true, low + p.rank, gradLow + p.rank, run.stride, size, states);
        storeTile(block, p, direction, low, gradLow, run.stride, t, size);
    }
}

// Sums over tokens that are kept for every image, direction and channel: gradients of A, D, dt_bias and dt_weight.
inline int64_t sumsOf(MapTensors const& p) { return p.states + 2 + p.rank; }

// Channels `index` of image `image` = b * G + g. tokens, gradients [K, L, R+2N]; perImage [B, G, K, D, N + 2 + R].
inline void backwardMapBlock(MapBackwardBlock& block, MapTensors const& p, MapGradients const& out, float const* tokens,
                             float* gradients, int64_t image, int64_t index, float* perImage) {
    BackwardBlock& scan = block.scan;
    int64_t const length = p.length(), first = index * kLanes, plane = (image * p.channels + first) * length;
    int const states = static_cast<int>(p.states);
    scan.count = laneCount(p.channels, index);
    toLanes(p.x + plane, length, scan.count, length, block.x);
    for (int64_t pixel = 0; pixel < length; ++pixel) {
        block.gradX[pixel] = block.gradY[pixel] = Vec{};
        std::memcpy(block.gradY + pixel, out.y + (image * length + pixel) * p.channels + first,
                    static_cast<size_t>(scan.count) * sizeof(float));
    }
    for (int k = 0; k < kDirections; ++k) {
        int64_t const row = (image % p.groups * kDirections + k) * p.channels + first;
        loadParameter(p.A + row * states, states, scan.count, 1.F, scan.A);
        loadParameter(p.A + row * states, states, scan.count, kLog2E, scan.scaledA);
        loadParameter(p.D + row, 1, scan.count, 1.F, &scan.skip);
        loadParameter(p.dtBias + row, 1, scan.count, 1.F, &scan.bias);
        loadParameter(p.dtWeight + row * p.rank, p.rank, scan.count, 1.F, block.weight);
        auto const run = states == kFastStates ? backwardDirection<kFastStates> : backwardDirection<0>;
        int64_t const at = k * length * p.features();
        run(block, p, k, tokens + at, gradients + at);
        int64_t const sums = sumsOf(p), image_row = (image * kDirections + k) * p.channels + first;
        storeSums(scan, states, sums, perImage + image_row * sums);
        for (int lane = 0; lane < scan.count; ++lane) {
            for (int64_t r = 0; r < p.rank; ++r) {
                perImage[(image_row + lane) * sums + states + 2 + r] = block.gradWeight[r][lane];
            }
        }
    }
    fromLanes(block.gradX, length, scan.count, length, out.x + plane);
}

// The images' sums into the gradients of the parameters, in the images' order.
inline void addImages(MapTensors const& p, MapGradients const& out, std::vector<float> const& perImage) {
    int64_t const rows = p.groups * kDirections * p.channels, size = sumsOf(p);
    for (int64_t row = 0; row < rows; ++row) {
        auto const sum = [&](int64_t i) {
            float total = 0.F;
            for (int64_t b = 0; b < p.batch; ++b) {
                total += perImage[static_cast<size_t>((b * rows + row) * size + i)];
            }
            return total;
        };
        for (int64_t n = 0; n < p.states; ++n) {
            out.A[row * p.states + n] = sum(n);
        }
        out.D[row] = sum(p.states);
        out.dtBias[row] = sum(p.states + 1);
        for (int64_t r = 0; r < p.rank; ++r) {
            out.dtWeight[row * p.rank + r] = sum(p.states + 2 + r);
        }
    }
}

// all [B * G, parts, K, L, R+2N] into x_dbl's gradient, the parts in their order.
inline void addParts(MapTensors const& p, MapGradients const& out, std::vector<float> const& all, int64_t parts,
                     int threads) {
    int64_t const length = p.length(), features = p.features(), size = length * features;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t plane = 0; plane < p.batch * p.groups * kDirections; ++plane) {
        int64_t const image = plane / kDirections, k = plane % kDirections;
        float const* const first = all.data() + (image * parts * kDirections + k) * size;
        for (int64_t pixel = 0; pixel < length; ++pixel) {
            int64_t const token = k % 2 ? pixel % p.width * p.height + pixel / p.width : pixel;
            for (int64_t f = 0; f < features; ++f) {
                float sum = 0.F;
                for (int64_t part = 0; part < parts; ++part) {
                    sum += first[part * kDirections * size + token * features + f];
                }
                out.xDbl[plane * size + f * length + pixel] = sum;
            }
        }
    }
}

inline void selectiveScan2DBackward(MapTensors const& p, MapGradients const& out, int threads) {
    int64_t const images = p.batch * p.groups, blocks = blocksOf(p.channels), parts = partsOf(images, blocks);
    int64_t const size = kDirections * p.length() * p.features();
    std::vector<float> const tokens = mapTokens(p, threads);
    std::vector<float> gradients(static_cast<size_t>(images * parts * size));
    std::vector<float> perImage(static_cast<size_t>(images * kDirections * p.channels * sumsOf(p)));
    Scratch scratch(threads, mapBackwardScratch(p));
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t task = 0; task < images * parts; ++task) {
        int64_t const image = task / parts, part = task % parts;
        MapBackwardBlock block;
        divide(block, p, scratch.mine());
        for (int64_t i = part * blocks / parts; i < (part + 1) * blocks / parts; ++i) {
            backwardMapBlock(block, p, out, tokens.data() + image * size, gradients.data() + task * size, image, i,
                             perImage.data());
        }
    }
    addImages(p, out, perImage);
    addParts(p, out, gradients, parts, threads);
}

} // namespace mtmamba::cpu
