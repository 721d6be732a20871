// The scan of SelectiveScan2D: who does what in a block, and when.
//
// Two warps share 8 kPer channels (kPer: 2 or 1) and go through the map in runs of kMapRun tokens, one direction after
// another. While the first steps the states through a run (map_recurrence.cuh), the second finishes the run before (y +
// D u + the sum so far, to memory) and prepares the next (map_steps.cuh: d = softplus(dt_weight . low + dt_bias) and
// d u); then all warps of the block meet: that is a turn. Features of a tile and x, shared by the block, come by
// asynchronous copies meanwhile (map_copies.cuh). More than kFold states take several turns over the map. Nothing
// crosses channels: a NaN stays in its channel.
#pragma once

#include "kernels/map_copies.cuh"
#include "kernels/map_recurrence.cuh"
#include "kernels/map_steps.cuh"

#ifdef MTMAMBA_SIMT

namespace mtmamba {

// From h of steps in units of ln 2 to y. Cutting h to 11 bits makes it smaller by 0.36 units of the 11th bit on
// average.
template <typename T>
constexpr float kOutputScale = 0.693147181F * (sizeof(T) == sizeof(float) ? 1.F : 1.F + 0.72F / 2048);

// y of the lane's token and channels.
template <typename T, int kPer> MTMAMBA_DEVICE void readOutputs(float const* steps, float* values) {
    using S = MapShape<T, kPer>;
    int const lane = static_cast<int>(threadIdx.x) % 32;
    MTMAMBA_UNROLL
    for (int k = 0; k < 4; ++k) {
        float const* const from = steps + (lane % 2 * 4 + k) * S::kStepPitch + lane / 2 * kPer;
        if (kPer == 2) {
            float2 const two = *reinterpret_cast<float2 const*>(from);
            values[k * kPer] = two.x;
            values[k * kPer + kPer - 1] = two.y;
        } else {
            values[k] = *from;
        }
    }
}

// The first warp of a pair: kFold states from fold * kFold on, through the map in place.direction.
template <typename T, int kPer>
MTMAMBA_DEVICE void scanRuns(MapLaunch<T> const& launch, MapPlace const& place, MapMemory<T, kPer>& memory, int fold) {
    SelectiveScan2DParams<T> const& p = launch.p;
    PairMemory<T, kPer>& own = memory.pairs[place.pair];
    MapStates<kPer> states;
    MTMAMBA_UNROLL
    for (int s = 0; s < 4 * kPer; ++s) {
        int const i = s / (2 * kPer), j = s / kPer % 2, r = s % kPer;
        int64_t const state = fold * kFold + 8 * i + 2 * mapInQuad() + j;
        int64_t const channel = place.row(p) + place.within(kPer * mapQuad() + r);
        states.A[r][i][j] = place.channels > 0 && state < p.states ? p.A[channel * p.states + state] : 0.F;
        states.h[r][i][j] = 0.F;
    }
    int const length = static_cast<int>(p.height * p.width);
    int const runs = (length + kMapRun - 1) / kMapRun;
    int at = 0; // of the run in the buffers of B and C
    meetBlock<MapShape<T, kPer>::kThreads>();
#pragma unroll 1
    for (int run = 0; run <= runs + runs % 2; ++run) {
        meetBlock<MapShape<T, kPer>::kThreads>();
        if (run < runs && place.channels > 0) {
            stepStates<T, kPer>(own.steps[run % 2], memory.B[0] + at, memory.C[0] + at, memory.zeros, states);
            at = at == (kMapAhead + 1) * kMapTile * kFold - kMapRun * kFold ? 0 : at + kMapRun * kFold;
        }
    }
}

// What the second warp of a pair does, in the turns of scanRuns. sums: the part's; fresh: nothing has been summed yet;
// direct: this makes y.
template <typename T, int kPer>
MTMAMBA_DEVICE void prepareRuns(MapLaunch<T> const& launch, MapPlace const& place, MapMemory<T, kPer>& memory, int fold,
                                float* sums, bool fresh, bool direct) {
    using S = MapShape<T, kPer>;
    SelectiveScan2DParams<T> const& p = launch.p;
    int const lane = static_cast<int>(threadIdx.x) % 32, mine = lane % 2 * S::kOwn; // the first channel that it moves
    int const height = static_cast<int>(p.height), width = static_cast<int>(p.width), length = height * width;
    float const* const low = launch.low + place.scan() * launch.pitch * launch.lowColumns;
    Plane<float, S::kOwn> const sum(sums, launch, place);
    PairMemory<T, kPer>& own = memory.pairs[place.pair];
    PixelWalk toSave(lane / 2, kMapRun, place.direction, height, width);
    float summed[S::kOwn] = {}; // what has been summed of the next run to finish
    auto const loadSum = [&](int first) {
        if (!fresh && place.moves && first + lane / 2 < length) {
            sum.load(toSave.at, summed);
        }
    };
    bool const skips = fold == 0 && place.direction == 0; // this adds D u
    // Finishes the run that begins with token `first`, of y that readOutputs read. inputs: x of the run's first token.
    auto const finish = [&](int first, T const* inputs, float (&values)[S::kOwn]) {
        if (place.moves && first + lane / 2 < length) {
            MTMAMBA_UNROLL
            for (int i = 0; i < S::kOwn; ++i) {
                values[i] = fmaf(values[i], kOutputScale<T>, summed[i]);
            }
            if (skips) {
                float u[S::kOwn], skip[S::kOwn];
                loadTogether<S::kOwn>(inputs + lane / 2 * S::kInputPitch + mine, u);
                loadTogether<S::kOwn>(own.skip + mine, skip);
                MTMAMBA_UNROLL
                for (int i = 0; i < S::kOwn; ++i) {
                    values[i] = fmaf(skip[i], u[i], values[i]);
                }
            }
            if (direct) {
                Plane<T, S::kOwn>(p.y, launch, place).save(toSave.at, values);
            } else {
                sum.save(toSave.at, values);
            }
        }
        toSave.step();
        loadSum(first + kMapRun);
    };
    // Of the tile, and of the one before: x of the pair's channels, and the tile's low rank.
    constexpr int kInputTile = kMapTile * S::kInputPitch;
    T const *const inputs = memory.x[0] + place.pair * S::kChannels, *now = inputs, *before = inputs;
    float const* lowNow = memory.low(0, launch);
    // Finishes the run in `steps` if there is one, of the tile before, and prepares in its place the one that begins
    // with token `first`, `run` of the tile.
    auto const turn = [&](int first, int run, float* steps) {
        float values[S::kOwn];
        Four raw[kPer];
        if (first >= kMapTile) {
            readOutputs<T, kPer>(steps, values);
        }
        if (first < length) {
            startWithBias<kPer>(own.bias, raw);
            if (launch.staged()) {
                float const* const weights = memory.weights() + place.pair * S::kChannels * 2 * launch.lowColumns;
                addLowRank<T, kPer>(launch.lowColumns, weights, lowNow + run * launch.lowColumns, raw);
            } else {
                addAnyRank<T, kPer>(launch, place, low + static_cast<int64_t>(first) * launch.lowColumns, raw);
            }
        }
        if (first >= kMapTile) {
            finish(first - kMapTile, before + run * S::kInputPitch, values);
        }
        __syncwarp(); // y has been read
        if (first < length) {
            makeSteps<T, kPer>(steps, now + run * S::kInputPitch, raw);
        }
    };
    RunCopies<T, kPer, !S::kCopier> copies(launch, place, memory, fold);
    loadSum(0);
#pragma unroll 1
    for (int first = 0; first < length + kMapTile; first += kMapTile) {
        MTMAMBA_UNROLL
        for (int run = 0; run < kTileRuns; ++run) {
            copies.meet(run);
            if (place.channels > 0) {
                turn(first + run * kMapRun, run * kMapRun, own.steps[run]);
            }
        }
        before = now;
        now = now == inputs + (kMapInputs - 1) * kInputTile ? inputs : now + kInputTile;
        lowNow =
            lowNow == memory.low(kMapAhead, launch) ? memory.low(0, launch) : lowNow + kMapTile * launch.lowColumns;
    }
}

// What a block's last warp does, in the turns of scanRuns, where the second ones do not copy.
template <typename T, int kPer>
MTMAMBA_DEVICE void copyRuns(MapLaunch<T> const& launch, MapPlace const& place, MapMemory<T, kPer>& memory, int fold) {
    int const length = static_cast<int>(launch.p.height * launch.p.width);
    RunCopies<T, kPer, true> copies(launch, place, memory, fold);
#pragma unroll 1
    for (int first = 0; first < length + kMapTile; first += kMapTile) {
        MTMAMBA_UNROLL
        for (int run = 0; run < kTileRuns; ++run) {
            copies.meet(run);
        }
    }
}

// The direction's parameters to shared memory, for the second warp alone. Ends without a barrier.
template <typename T, int kPer>
MTMAMBA_DEVICE void startDirection(MapLaunch<T> const& launch, MapPlace const& place, MapMemory<T, kPer>& memory) {
    using S = MapShape<T, kPer>;
    SelectiveScan2DParams<T> const& p = launch.p;
    int const lane = static_cast<int>(threadIdx.x) % 32;
    int const rank = static_cast<int>(p.rank), columns = launch.lowColumns;
    int64_t const row = place.row(p);
    if (place.channels <= 0) {
        return;
    }
    if (lane < S::kChannels) {
        memory.pairs[place.pair].bias[lane] = p.dtBias[row + place.within(lane)] * kLog2E;
        float skip = 0.F; // of all directions, for the first one to add
        for (int k = 0; k < kDirections && place.direction == 0; ++k) {
            skip += p.D[row + k * p.channels + place.within(lane)];
        }
        memory.pairs[place.pair].skip[lane] = skip;
    }
    float* const weights = memory.weights() + place.pair * S::kChannels * 2 * columns;
    for (int i = lane; launch.staged() && i < S::kChannels * columns; i += 32) {
        int const c = i / columns, r = i % columns;
        float const weight = r < rank ? p.dtWeight[(row + place.within(c)) * rank + r] * kLog2E : 0.F;
        float* const to = weights + weightIndex<kPer>(c, r);
        to[0] = weight;
        to[2] = lostByTf32(weight);
    }
}

// The kernel's warps of the first kind, of the second, and the last: a block's scans, one after another.
template <typename T, int kPer>
MTMAMBA_DEVICE void scanAll(MapLaunch<T> const& launch, int pair, MapMemory<T, kPer>& memory) {
    int const folds = static_cast<int>(foldsOf(launch.p.states));
    for (MapTurn<T> turn(launch); turn.more(); turn.step()) {
        MapPlace const place = placeOf<T, kPer>(launch, turn, pair);
        for (int fold = 0; fold < folds; ++fold) {
            meetBlock<MapShape<T, kPer>::kThreads>(); // the scan before is done
            scanRuns(launch, place, memory, fold);
        }
    }
}
template <typename T, int kPer>
MTMAMBA_DEVICE void prepareAll(MapLaunch<T> const& launch, int pair, MapMemory<T, kPer>& memory) {
    int const folds = static_cast<int>(foldsOf(launch.p.states));
    for (MapTurn<T> turn(launch); turn.more(); turn.step()) {
        MapPlace const place = placeOf<T, kPer>(launch, turn, pair);
        float* const sums = launch.sums[turn.part()];
        for (int fold = 0; fold < folds; ++fold) {
            meetBlock<MapShape<T, kPer>::kThreads>();
            if (fold == 0) {
                startDirection(launch, place, memory);
            }
            bool const direct = launch.direct && turn.isLast() && turn.isWhole() && fold + 1 == folds;
            prepareRuns(launch, place, memory, fold, sums, turn.isFirst() && fold == 0, direct);
        }
    }
}

template <typename T, int kPer> MTMAMBA_DEVICE void copyAll(MapLaunch<T> const& launch, MapMemory<T, kPer>& memory) {
    int const folds = static_cast<int>(foldsOf(launch.p.states));
    for (MapTurn<T> turn(launch); turn.more(); turn.step()) {
        for (int fold = 0; fold < folds; ++fold) {
            meetBlock<MapShape<T, kPer>::kThreads>();
            copyRuns(launch, placeOf<T, kPer>(launch, turn, 0), memory, fold);
        }
    }
}

// Blocks that a multiprocessor has places for, by registers, and by shared memory: 100 KiB of it but for compute
// capability 8.0 and 9.0.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ != 800 && __CUDA_ARCH__ != 900
constexpr int kLittleMemory = 1;
#else
constexpr int kLittleMemory = 0;
#endif
template <typename T, int kPer>
constexpr int kMapBlocksPerSM = sizeof(T) == sizeof(float) ? 1 : (kPer == 2 ? 2 : 3) - kLittleMemory;

template <typename T, int kPer>
__global__ void __launch_bounds__(MapShape<T, kPer>::kThreads, kMapBlocksPerSM<T, kPer>)
    mapScanKernel(MapLaunch<T> launch) {
    using S = MapShape<T, kPer>;
    auto& memory = *static_cast<MapMemory<T, kPer>*>(sharedMemory());
    int const warp = static_cast<int>(threadIdx.x) / 32, pair = warp % S::kPairs;
    for (int i = static_cast<int>(threadIdx.x); i < (kMapRun + 2) * kFold; i += S::kThreads) {
        memory.zeros[i] = 0.F;
    }
    if (warp < S::kPairs) {
        scanAll(launch, pair, memory);
    } else if (warp < 2 * S::kPairs) {
        prepareAll(launch, pair, memory);
    } else {
        copyAll(launch, memory);
    }
}

template <typename T, int kPer> cudaError_t launchMapScan(MapLaunch<T> launch, cudaStream_t stream) {
    constexpr int kChannels = MapMemory<T, kPer>::kChannels;
    launch.channelBlocks = (launch.p.channels + kChannels - 1) / kChannels;
    int64_t const scans = launch.p.batch * launch.p.groups * launch.channelBlocks * kDirections;
    if (scans > INT32_MAX) {
        return cudaErrorInvalidValue;
    }
    launch.scanCount = static_cast<int>(scans);
    int64_t const blocks = (scans + launch.scans - 1) / launch.scans;
    return launchLine(mapScanKernel<T, kPer>, blocks, MapShape<T, kPer>::kThreads, MapMemory<T, kPer>::bytes(launch),
                      stream, launch);
}

} // namespace mtmamba

#endif // MTMAMBA_SIMT
