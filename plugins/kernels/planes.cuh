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

template <typename T> struct alignas(2 * sizeof(T)) Two {
    T first, second;
};

// The features of a scan in the order of its direction: for every kFold states a plane of (B, C), [pitch][kFold], then
// the low rank's, float32, [pitch][lowColumns]. What no token or state has is zero.
constexpr int kFold = 16; // states that are scanned at once
template <typename T> struct OrderParams {
    T const* from; // [images, K, rank + 2 states, H, W]
    Two<T>* BC;    // [images, K, folds, pitch, kFold]
    float* low;    // [images, K, pitch, lowColumns]
    int64_t images;
    int64_t height;
    int64_t width;
    int64_t pitch; // at least H W
    int64_t rank;
    int64_t lowColumns; // at least rank
    int64_t states;
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

constexpr int kTurnTile = 64;
constexpr int kTurnRows = 4; // of threads: a block has kTurnTile * kTurnRows
constexpr int kTurnThreads = kTurnTile * kTurnRows;
constexpr int kSumThreads = 256;
constexpr int kSumEach = 4; // values of a thread
constexpr int kOrderThreads = 256;
constexpr int kOrderColumns = 2 * kFold;
constexpr int kOrderHeight = 8, kOrderWidth = 16, kOrderTile = kOrderHeight * kOrderWidth; // pixels of a block

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

template <typename T> __global__ void __launch_bounds__(kTurnThreads) turnKernel(TurnParams<T> p) {
    constexpr int kPitch = kTurnTile + 4 / static_cast<int>(sizeof(T)); // down a column every lane meets another bank
    auto const tile = static_cast<T(*)[kPitch]>(sharedMemory());
    TurnTile const place(p.rows, p.columns);
    T const* const from = p.from + (place.matrix * p.rows + place.row) * p.columns + place.column;
    T* const to = p.to + (place.matrix * p.columns + place.column) * p.rows + place.row;
    int const rows = static_cast<int>(p.rows - place.row < kTurnTile ? p.rows - place.row : kTurnTile);
    int const columns = static_cast<int>(p.columns - place.column < kTurnTile ? p.columns - place.column : kTurnTile);
    MTMAMBA_UNROLL
    for (int i = 0; i < kTurnTile; i += kTurnRows) { // many loads at once
        if (place.y + i < rows && place.x < columns) {
            tile[place.y + i][place.x] = from[(place.y + i) * p.columns + place.x];
        }
    }
    __syncthreads();
    MTMAMBA_UNROLL
    for (int i = 0; i < kTurnTile; i += kTurnRows) {
        if (place.y + i < columns && place.x < rows) {
            to[(place.y + i) * p.rows + place.x] = tile[place.x][place.y + i];
        }
    }
}

// Where column `column` of a plane comes from: a feature of x_dbl, or -1. fold: below 0, the low rank's plane.
template <typename T> MTMAMBA_DEVICE int64_t featureOf(OrderParams<T> const& p, int64_t fold, int64_t column) {
    if (fold < 0) {
        return column < p.rank ? column : -1;
    }
    int64_t const state = fold * kFold + column / 2;
    return state < p.states ? p.rank + column % 2 * p.states + state : -1;
}

// Hands every token of the block's pixels to write(token, column, pixel), column by column in consecutive lanes, and
// the tokens past the end with a pixel of -1. place: the block's.
template <typename T, typename Write>
MTMAMBA_DEVICE void forTokens(OrderParams<T> const& p, int direction, int64_t row, int64_t column, int columns,
                              Write const& write) {
    int const lane = static_cast<int>(threadIdx.x) % columns, step = kOrderThreads / columns;
    int64_t const length = p.height * p.width;
    for (int pixel = static_cast<int>(threadIdx.x) / columns; pixel < kOrderTile; pixel += step) {
        int64_t const h = row + pixel / kOrderWidth, w = column + pixel % kOrderWidth;
        if (h < p.height && w < p.width) {
            int64_t const forward = direction % 2 ? w * p.height + h : h * p.width + w;
            write(direction >= 2 ? length - 1 - forward : forward, lane, pixel);
        }
    }
    for (int64_t t = length + threadIdx.x / columns; row == 0 && column == 0 && t < p.pitch; t += step) {
        write(t, lane, -1);
    }
}

// A block's pixels, kOrderColumns of a plane's columns.
template <typename T> __global__ void __launch_bounds__(kOrderThreads) orderKernel(OrderParams<T> p) {
    auto const tile = static_cast<T(*)[kOrderColumns + 4 / sizeof(T)]>(sharedMemory()); // [kOrderTile]
    int64_t const folds = (p.states + kFold - 1) / kFold, lowParts = (p.lowColumns + kOrderColumns - 1) / kOrderColumns;
    int64_t const across = (p.width + kOrderWidth - 1) / kOrderWidth;
    int64_t const tiles = across * ((p.height + kOrderHeight - 1) / kOrderHeight);
    int64_t const block = blockIdx.x, place = block % tiles, part = block / tiles % (folds + lowParts);
    int64_t const scan = block / tiles / (folds + lowParts); // image and direction
    int64_t const row = place / across * kOrderHeight, column = place % across * kOrderWidth;
    int64_t const fold = part < folds ? part : -1, first = fold < 0 ? (part - folds) * kOrderColumns : 0;
    int64_t const length = p.height * p.width;
    T const* const from = p.from + scan * (p.rank + 2 * p.states) * length;
    int const thread = static_cast<int>(threadIdx.x), direction = static_cast<int>(scan % kDirections);
    MTMAMBA_UNROLL
    for (int i = 0; i < kOrderTile * kOrderColumns; i += kOrderThreads) { // many loads at once
        int const pixel = thread % kOrderTile, c = (i + thread) / kOrderTile;
        int64_t const h = row + pixel / kOrderWidth, w = column + pixel % kOrderWidth;
        int64_t const feature = featureOf(p, fold, first + c);
        T value;
        store(&value, 0.F);
        tile[pixel][c] = h < p.height && w < p.width && feature >= 0 ? from[feature * length + h * p.width + w] : value;
    }
    __syncthreads();
    if (fold >= 0) {
        Two<T>* const to = p.BC + (scan * folds + fold) * p.pitch * kFold;
        forTokens(p, direction, row, column, kFold, [&](int64_t token, int lane, int pixel) {
            Two<T> two;
            store(&two.first, 0.F);
            two.second = two.first;
            if (pixel >= 0) {
                two = {tile[pixel][2 * lane], tile[pixel][2 * lane + 1]};
            }
            to[token * kFold + lane] = two;
        });
    } else {
        float* const to = p.low + scan * p.pitch * p.lowColumns + first;
        forTokens(p, direction, row, column, kOrderColumns, [&](int64_t token, int lane, int pixel) {
            if (first + lane < p.lowColumns) {
                to[token * p.lowColumns + lane] = pixel < 0 ? 0.F : toFloat(tile[pixel][lane]);
            }
        });
    }
}

template <typename T> __global__ void __launch_bounds__(kSumThreads) sumKernel(SumParams<T> p) {
    int64_t const first = static_cast<int64_t>(blockIdx.x) * kSumThreads * kSumEach + threadIdx.x;
    float sums[kSumEach];
    MTMAMBA_UNROLL
    for (int j = 0; j < kSumEach; ++j) {
        int64_t const i = first + j * kSumThreads;
        sums[j] = 0.F;
        if (i < p.count) {
            sums[j] = p.parts[0][i] + p.parts[1][i];
            if (p.partCount == kMaxParts) {
                sums[j] += p.parts[2][i] + p.parts[3][i];
            }
        }
    }
    MTMAMBA_UNROLL
    for (int j = 0; j < kSumEach; ++j) {
        int64_t const i = first + j * kSumThreads;
        if (i < p.count) {
            store(p.to + i, sums[j]);
        }
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
    size_t const bytes = kTurnTile * (sizeof(T) * kTurnTile + 4);
    return launchLine(turnKernel<T>, p.count * turnTiles(p.rows, p.columns), kTurnThreads, bytes, stream, p);
}

template <typename T> cudaError_t launchOrder(OrderParams<T> const& p, cudaStream_t stream) {
    size_t const bytes = kOrderTile * (sizeof(T) * kOrderColumns + 4);
    int64_t const planes = (p.states + kFold - 1) / kFold + (p.lowColumns + kOrderColumns - 1) / kOrderColumns;
    int64_t const tiles = (p.height + kOrderHeight - 1) / kOrderHeight * ((p.width + kOrderWidth - 1) / kOrderWidth);
    return launchLine(orderKernel<T>, p.images * kDirections * planes * tiles, kOrderThreads, bytes, stream, p);
}

template <typename T> cudaError_t launchSum(SumParams<T> const& p, cudaStream_t stream) {
    int64_t const each = kSumThreads * kSumEach;
    return launchLine(sumKernel<T>, (p.count + each - 1) / each, kSumThreads, 0, stream, p);
}

#endif // MTMAMBA_SIMT

} // namespace mtmamba
