// Moving whole tensors: x to channels last, the features into the order of each scan, partial sums added up.
#pragma once

#include "kernels/simt.cuh"

namespace mtmamba {

// What one launch turns: matrices [count, rows, columns] -> [count, columns, rows].
template <typename T> struct TurnParams {
    T const* from;
    T* to;
    int64_t count;
    int64_t rows;
    int64_t columns;
};

// What one launch orders: maps [images, K, features, H, W] -> [images, K, features, pitch], each in the order of its
// direction, with zeros from H W to the pitch.
template <typename T> struct OrderParams {
    T const* from;
    T* to;
    int64_t images;
    int64_t features;
    int64_t height;
    int64_t width;
    int64_t pitch; // at most kOrderThreads past H W
};

// to[i] = the sum of `parts` values, in a fixed order. A part is one buffer of `count` floats.
constexpr int kMaxParts = 4;
template <typename T> struct SumParams {
    float const* parts[kMaxParts];
    T* to; // may be parts[0]
    int64_t count;
    int partCount; // 2 or 4
};

#ifdef MTMAMBA_SIMT

constexpr int kTurnTile = 32;
constexpr int kTurnRows = 8; // of threads: a block has kTurnTile * kTurnRows
constexpr int kSumThreads = 256;
constexpr int kOrderThreads = kTurnTile * kTurnRows;

// A block's tile of one matrix [rows, columns].
struct TurnTile {
    int64_t matrix, row, column;
    int x, y; // the thread's place

    MTMAMBA_DEVICE TurnTile(int64_t rows, int64_t columns)
        : x(static_cast<int>(threadIdx.x) % kTurnTile), y(static_cast<int>(threadIdx.x) / kTurnTile) {
        int64_t const across = (columns + kTurnTile - 1) / kTurnTile, down = (rows + kTurnTile - 1) / kTurnTile;
        int64_t const block = blockIdx.x;
        matrix = block / (across * down);
        row = block / across % down * kTurnTile;
        column = block % across * kTurnTile;
    }
};

// The tile of `from` [rows, columns] into shared memory.
template <typename T>
MTMAMBA_DEVICE void readTile(TurnTile const& place, T const* from, int64_t rows, int64_t columns,
                             T (*tile)[kTurnTile + 1]) {
    for (int i = place.y; i < kTurnTile; i += kTurnRows) {
        if (place.row + i < rows && place.column + place.x < columns) {
            tile[i][place.x] = from[(place.row + i) * columns + place.column + place.x];
        }
    }
    __syncthreads();
}

template <typename T> __global__ void __launch_bounds__(kOrderThreads) turnKernel(TurnParams<T> p) {
    auto const tile = static_cast<T(*)[kTurnTile + 1]>(sharedMemory());
    TurnTile const place(p.rows, p.columns);
    int64_t const start = place.matrix * p.rows * p.columns;
    readTile(place, p.from + start, p.rows, p.columns, tile);
    for (int i = place.y; i < kTurnTile; i += kTurnRows) {
        if (place.column + i < p.columns && place.row + place.x < p.rows) {
            p.to[start + (place.column + i) * p.rows + place.row + place.x] = tile[place.x][i];
        }
    }
}

template <typename T> __global__ void __launch_bounds__(kOrderThreads) orderKernel(OrderParams<T> p) {
    auto const tile = static_cast<T(*)[kTurnTile + 1]>(sharedMemory());
    TurnTile const place(p.height, p.width);
    int64_t const length = p.height * p.width;
    int const direction = static_cast<int>(place.matrix / p.features % kDirections);
    readTile(place, p.from + place.matrix * length, p.height, p.width, tile);
    T* const to = p.to + place.matrix * p.pitch;
    bool const columns = direction % 2 == 1;
    for (int i = place.y; i < kTurnTile; i += kTurnRows) {
        int const down = columns ? place.x : i, across = columns ? i : place.x;
        int64_t const h = place.row + down, w = place.column + across;
        if (h < p.height && w < p.width) {
            int64_t const forward = columns ? w * p.height + h : h * p.width + w;
            to[direction >= 2 ? length - 1 - forward : forward] = tile[down][across];
        }
    }
    if (place.row == 0 && place.column == 0 && length + threadIdx.x < p.pitch) {
        store(to + length + threadIdx.x, 0.F);
    }
}

template <typename T> __global__ void __launch_bounds__(kSumThreads) sumKernel(SumParams<T> p) {
    int64_t const i = static_cast<int64_t>(blockIdx.x) * kSumThreads + threadIdx.x;
    if (i < p.count) {
        float sum = p.parts[0][i] + p.parts[1][i];
        if (p.partCount == kMaxParts) {
            sum += p.parts[2][i] + p.parts[3][i];
        }
        store(p.to + i, sum);
    }
}

// Launches `kernel` with `blocks` blocks in one dimension.
template <typename Params>
cudaError_t launchLine(void (*kernel)(Params), int64_t blocks, unsigned threads, size_t sharedBytes,
                       cudaStream_t stream, Params const& params) {
    if (blocks < 1 || blocks > INT32_MAX) {
        return cudaErrorInvalidValue;
    }
    return launchBlocks(kernel, dim3(static_cast<unsigned>(blocks)), threads, sharedBytes, stream, params);
}

inline int64_t turnTiles(int64_t rows, int64_t columns) {
    return ((rows + kTurnTile - 1) / kTurnTile) * ((columns + kTurnTile - 1) / kTurnTile);
}

template <typename T> cudaError_t launchTurn(TurnParams<T> const& p, cudaStream_t stream) {
    size_t const bytes = sizeof(T) * kTurnTile * (kTurnTile + 1);
    return launchLine(turnKernel<T>, p.count * turnTiles(p.rows, p.columns), kOrderThreads, bytes, stream, p);
}

template <typename T> cudaError_t launchOrder(OrderParams<T> const& p, cudaStream_t stream) {
    size_t const bytes = sizeof(T) * kTurnTile * (kTurnTile + 1);
    int64_t const maps = p.images * kDirections * p.features;
    return launchLine(orderKernel<T>, maps * turnTiles(p.height, p.width), kOrderThreads, bytes, stream, p);
}

template <typename T> cudaError_t launchSum(SumParams<T> const& p, cudaStream_t stream) {
    return launchLine(sumKernel<T>, (p.count + kSumThreads - 1) / kSumThreads, kSumThreads, 0, stream, p);
}

#endif // MTMAMBA_SIMT

} // namespace mtmamba
