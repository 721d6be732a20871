// Moving whole tensors: x to channels last, the features into the order of each scan, partial sums added up.
#pragma once

#include <cstring>

#include "kernels/simt.cuh"

namespace mtmamba {

// What one launch turns: matrices [count, rows, columns] -> [count, columns, pitch], 0 past the rows.
constexpr int kChannelPitch = 8;
template <typename T> struct TurnParams {
    T const* from;
    T* to;
    int64_t count;
    int64_t rows;
    int64_t columns;
    int64_t pitch; // rows up to a multiple of kChannelPitch
};

template <typename T> struct alignas(2 * sizeof(T)) Two {
    T first, second;
};

// The features of a scan in the order of its direction, float32: for every kFold states a plane of B and C,
// [pitch][2 kFold], then the low rank's, as lowIndex says. What no token or state has is zero.
constexpr int kFold = 16;    // states that are scanned at once
constexpr int kMapTile = 32; // tokens whose features are in shared memory
constexpr int kMapRun = 16;  // tokens of it that a team of warps takes at once
MTMAMBA_HOST_DEVICE inline int64_t foldsOf(int64_t states) { return (states + kFold - 1) / kFold; }

// The tensor cores take eight ranks of a run at a time; a lane needs r and r + 4 of two tokens, which lie together.
MTMAMBA_HOST_DEVICE inline int64_t lowColumns(int64_t rank) { return (rank + 7) / 8 * 8; }
MTMAMBA_HOST_DEVICE inline uint32_t lowIndex(uint32_t token, uint32_t r, uint32_t columns) {
    return token / kMapRun * (kMapRun * columns) + r / 8 * (8 * kMapRun) + token % kMapRun / 2 * 16 + r % 4 * 4 +
           r % 8 / 4 * 2 + token % 2;
}
template <typename T> struct OrderParams {
    T const* from; // [images, K, rank + 2 states, H, W]
    float* BC;     // [images, K, folds, pitch, 2 kFold]
    float* low;    // [images, K, pitch * columns], see lowIndex
    int64_t images;
    int64_t height;
    int64_t width;
    int64_t pitch; // at least H W
    int64_t rank;
    int64_t columns; // of low: lowColumns(rank)
    int64_t states;
};

// Blocks take `scans` scans each; a unit, what scans some channels of an image, has four in a row. How many blocks
// share a unit, and at most.
constexpr int kMaxParts = kDirections;
MTMAMBA_HOST_DEVICE inline int partsOf(int unit, int scans) {
    return (unit * kDirections + kDirections - 1) / scans - unit * kDirections / scans + 1;
}
inline int maxPartsOf(int scans) { return scans == 1 ? kMaxParts : scans % kDirections == 0 ? 1 : 2; }

// to = the sum of the parts of each unit, in a fixed order. A part is float32 [rows, pitch], `to` is [rows, columns].
template <typename T> struct SumParams {
    float const* parts[kMaxParts];
    T* to; // may be parts[0] where the pitch is `columns`
    int64_t rows;
    int64_t columns;
    int64_t pitch;          // columns up to a multiple of kChannelPitch
    int64_t length;         // rows of an image
    int unitColumns, units; // columns of a unit; units of an image
    int scans;              // of a block
    bool direct;            // where one block has all of a unit, it has written `to`
};

#ifdef MTMAMBA_SIMT

constexpr int kTurnTile = 64;
constexpr int kTurnRows = 4; // of threads: a block has kTurnTile * kTurnRows
constexpr int kTurnThreads = kTurnTile * kTurnRows;
constexpr int kSumThreads = 256;
constexpr int kSumEach = 4; // values of a thread
constexpr int kOrderThreads = 256;
constexpr int kLowTogether = 16; // columns of the low rank that a block orders
constexpr int kOrderHeight = 8, kOrderWidth = 16, kOrderTile = kOrderHeight * kOrderWidth; // pixels of a block

// kCount values that lie together, aligned to 16 bytes or their size.
template <int kCount, typename T> MTMAMBA_DEVICE void loadTogether(T const* from, float* values) {
    T own[kCount];
    if constexpr (sizeof own == 8) {
        uint2 const raw = *reinterpret_cast<uint2 const*>(from);
        memcpy(static_cast<void*>(own), &raw, sizeof raw);
    } else {
        MTMAMBA_UNROLL
        for (size_t i = 0; i < sizeof own / 16; ++i) {
            uint4 const raw = reinterpret_cast<uint4 const*>(from)[i];
            memcpy(reinterpret_cast<char*>(own) + 16 * i, &raw, sizeof raw);
        }
    }
    MTMAMBA_UNROLL
    for (int i = 0; i < kCount; ++i) {
        values[i] = toFloat(own[i]);
    }
}
template <int kCount, typename T> MTMAMBA_DEVICE void saveTogether(T* to, float const* values) {
    T own[kCount];
    MTMAMBA_UNROLL
    for (int i = 0; i < kCount; ++i) {
        store(own + i, values[i]);
    }
    if constexpr (sizeof own == 8) {
        uint2 raw;
        memcpy(&raw, own, sizeof raw);
        *reinterpret_cast<uint2*>(to) = raw;
    } else {
        MTMAMBA_UNROLL
        for (size_t i = 0; i < sizeof own / 16; ++i) {
            uint4 raw;
            memcpy(&raw, reinterpret_cast<char const*>(own) + 16 * i, sizeof raw);
            reinterpret_cast<uint4*>(to)[i] = raw;
        }
    }
}

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

MTMAMBA_HOST_DEVICE inline int64_t orderTiles(int64_t height, int64_t width) {
    return (height + kOrderHeight - 1) / kOrderHeight * ((width + kOrderWidth - 1) / kOrderWidth);
}

// A block's whole tile, kFull, or what there is of it.
template <bool kFull, typename T> MTMAMBA_DEVICE void turnTile(TurnParams<T> const& p, TurnTile const& place, T* tile) {
    constexpr int kPitch = kTurnTile + 4 / static_cast<int>(sizeof(T)); // down a column every lane meets another bank
    int const rows = static_cast<int>(p.rows - place.row), pitch = static_cast<int>(p.pitch - place.row);
    int const columns = static_cast<int>(p.columns - place.column);
    T const* from = p.from + (place.matrix * p.rows + place.row + place.y) * p.columns + place.column + place.x;
    T* to = p.to + (place.matrix * p.columns + place.column + place.y) * p.pitch + place.row + place.x;
    T* const own = tile + place.y * kPitch + place.x;
    T const* const turned = tile + place.x * kPitch + place.y;
    MTMAMBA_UNROLL
    for (int i = 0; i < kTurnTile; i += kTurnRows) { // many loads at once
        if (kFull || (place.y + i < rows && place.x < columns)) {
            own[i * kPitch] = *from;
        }
        from += kTurnRows * p.columns;
    }
    __syncthreads();
    MTMAMBA_UNROLL
    for (int i = 0; i < kTurnTile; i += kTurnRows) {
        if (kFull || (place.y + i < columns && place.x < pitch)) {
            T value;
            store(&value, 0.F);
            *to = kFull || place.x < rows ? turned[i] : value;
        }
        to += kTurnRows * p.pitch;
    }
}

template <typename T> __global__ void __launch_bounds__(kTurnThreads) turnKernel(TurnParams<T> p) {
    auto const tile = static_cast<T*>(sharedMemory());
    TurnTile const place(p.pitch, p.columns);
    if (place.row + kTurnTile <= p.rows && place.column + kTurnTile <= p.columns) {
        turnTile<true>(p, place, tile);
    } else {
        turnTile<false>(p, place, tile);
    }
}

// Where a column of a plane comes from, a feature of x_dbl, or -1; the column is 2 pair + parity. fold: below 0, the
// low rank's plane. B and C of a fold's states lie as the tensor cores want them: B of states n and n + 8 side by side;
// C of 2 q, 2 q + 1, 2 q + 8 and 2 q + 9.
MTMAMBA_DEVICE int featureOf(int rank, int states, int fold, int pair, int parity) {
    if (fold < 0) {
        return 2 * pair + parity < rank ? 2 * pair + parity : -1;
    }
    bool const isB = pair < kFold / 2;
    int const state = fold * kFold + (isB ? parity * 8 + pair : pair % 2 * 8 + (pair - kFold / 2) / 2 * 2 + parity);
    return state < states ? rank + (isB ? 0 : states) + state : -1;
}

// A block's pixels, kColumns of a plane's columns from `first` on. write(token, column, value): column counts from
// first.
template <int kColumns, typename T, typename Write>
MTMAMBA_DEVICE void orderPlane(OrderParams<T> const& p, int place, int scan, int fold, int first, Write const& write) {
    constexpr int kPitch = kColumns + 4 / static_cast<int>(sizeof(T)), kRows = kOrderThreads / kColumns;
    auto const tile = static_cast<T*>(sharedMemory()); // [kOrderTile][kPitch]
    int const height = static_cast<int>(p.height), width = static_cast<int>(p.width), length = height * width;
    int const rank = static_cast<int>(p.rank), states = static_cast<int>(p.states), direction = scan % kDirections;
    int const across = (width + kOrderWidth - 1) / kOrderWidth, thread = static_cast<int>(threadIdx.x);
    int const row = place / across * kOrderHeight, column = place % across * kOrderWidth;
    {
        static_assert(kOrderThreads == 2 * kOrderTile, "a thread has every second column of a pixel");
        int const pixel = thread % kOrderTile, h = row + pixel / kOrderWidth, w = column + pixel % kOrderWidth;
        int const parity = thread / kOrderTile;
        bool const inside = h < height && w < width;
        T const* const from = p.from + static_cast<int64_t>(scan) * (rank + 2 * states) * length + (h * width + w);
        T* const to = tile + pixel * kPitch + parity;
        MTMAMBA_UNROLL
        for (int i = 0; i < kColumns / 2; ++i) { // many loads at once
            int const feature = featureOf(rank, states, fold, first / 2 + i, parity);
            T value;
            store(&value, 0.F);
            to[2 * i] = inside && feature >= 0 ? from[static_cast<int64_t>(feature) * length] : value;
        }
    }
    __syncthreads();
    // The token of each pixel: linear in its place.
    int const lane = thread % kColumns, mine = thread / kColumns, turn = direction >= 2 ? -1 : 1;
    int const down = turn * (direction % 2 ? 1 : width), right = turn * (direction % 2 ? height : 1);
    int const w = column + mine % kOrderWidth, h = row + mine / kOrderWidth;
    int const origin = (direction >= 2 ? length - 1 : 0) + h * down + w * right;
    static_assert(kOrderWidth % kRows == 0, "a row of pixels takes whole turns");
    constexpr int kTurns = kOrderWidth / kRows; // of a row
    MTMAMBA_UNROLL
    for (int i = 0; i < kOrderTile / kRows; ++i) {
        if (h + i / kTurns < height && w + i % kTurns * kRows < width) {
            write(origin + i / kTurns * down + i % kTurns * kRows * right, lane,
                  toFloat(tile[(i * kRows + mine) * kPitch + lane]));
        }
    }
    for (int t = length + mine; place == 0 && t < p.pitch; t += kRows) { // past the end
        write(t, lane, 0.F);
    }
}

template <typename T> __global__ void __launch_bounds__(kOrderThreads) orderKernel(OrderParams<T> p) {
    int const folds = static_cast<int>(foldsOf(p.states)), columns = static_cast<int>(p.columns);
    int const planes = folds + (columns + kLowTogether - 1) / kLowTogether;
    int const tiles = static_cast<int>(orderTiles(p.height, p.width)), block = static_cast<int>(blockIdx.x);
    int const place = block % tiles, plane = block / tiles % planes, scan = block / tiles / planes; // image, direction
    if (plane < folds) {
        float* const to = p.BC + (static_cast<int64_t>(scan) * folds + plane) * p.pitch * (2 * kFold);
        orderPlane<2 * kFold>(p, place, scan, plane, 0, [&](int token, int column, float value) {
            to[static_cast<uint32_t>(token) * (2 * kFold) + static_cast<uint32_t>(column)] = value;
        });
    } else {
        float* const to = p.low + scan * p.pitch * columns;
        int const first = (plane - folds) * kLowTogether;
        orderPlane<kLowTogether>(p, place, scan, -1, first, [&](int token, int column, float value) {
            if (first + column < columns) {
                to[lowIndex(static_cast<uint32_t>(token), static_cast<uint32_t>(first + column),
                            static_cast<uint32_t>(columns))] = value;
            }
        });
    }
}

template <typename T> __global__ void __launch_bounds__(kSumThreads) sumKernel(SumParams<T> p) {
    int64_t const index = static_cast<int64_t>(blockIdx.x) * kSumThreads + threadIdx.x, at = index * kSumEach;
    if (at >= p.rows * p.pitch) {
        return;
    }
    bool const together = p.pitch == p.columns;
    int count = p.scans <= 2 ? kDirections / p.scans : 1; // of parts
    int64_t row = 0, column = at;
    if (!together || p.scans > 2) {
        auto const across = static_cast<uint32_t>(p.pitch / kSumEach);
        row = index <= UINT32_MAX ? static_cast<uint32_t>(index) / across : index / across; // 32 bits are much faster
        column = at - row * p.pitch;
    }
    if (p.scans > 2) {
        uint32_t const image = static_cast<uint32_t>(row) / static_cast<uint32_t>(p.length);
        count = partsOf(static_cast<int>(image) * p.units + static_cast<int>(column) / p.unitColumns, p.scans);
        if (count == 1 && p.direct) {
            return;
        }
    }
    float4 parts[kMaxParts] = {};
    MTMAMBA_UNROLL
    for (int i = 0; i < kMaxParts; ++i) {
        if (i < count) {
            parts[i] = *reinterpret_cast<float4 const*>(p.parts[i] + at);
        }
    }
    float const sums[kSumEach] = {
        parts[0].x + parts[1].x + (parts[2].x + parts[3].x), parts[0].y + parts[1].y + (parts[2].y + parts[3].y),
        parts[0].z + parts[1].z + (parts[2].z + parts[3].z), parts[0].w + parts[1].w + (parts[2].w + parts[3].w)};
    if (together) {
        saveTogether<kSumEach>(p.to + at, sums);
        return;
    }
    for (int i = 0; i < kSumEach; ++i) {
        if (column + i < p.columns) {
            store(p.to + row * p.columns + column + i, sums[i]);
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
    return launchLine(turnKernel<T>, p.count * turnTiles(p.pitch, p.columns), kTurnThreads, bytes, stream, p);
}

template <typename T> cudaError_t launchOrder(OrderParams<T> const& p, cudaStream_t stream) {
    size_t const bytes = kOrderTile * (sizeof(T) * 2 * kFold + 4);
    int64_t const planes = foldsOf(p.states) + (p.columns + kLowTogether - 1) / kLowTogether;
    int64_t const blocks = p.images * kDirections * planes * orderTiles(p.height, p.width);
    return launchLine(orderKernel<T>, blocks, kOrderThreads, bytes, stream, p);
}

template <typename T> cudaError_t launchSum(SumParams<T> const& p, cudaStream_t stream) {
    int64_t const each = kSumThreads * kSumEach;
    return launchLine(sumKernel<T>, (p.rows * p.pitch + each - 1) / each, kSumThreads, 0, stream, p);
}

#endif // MTMAMBA_SIMT

} // namespace mtmamba
