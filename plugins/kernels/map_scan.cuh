// The scan of SelectiveScan2D: who does what in a block, and when.
//
// A team of warps has 8 kPer channels (kPer: 2 or 1) and goes through the map in runs of kMapRun tokens, one direction
// after another. One steps the states through a run (map_recurrence.cuh); another meanwhile prepares the next
// (map_steps.cuh: d = softplus(dt_weight . low + dt_bias) and d u) and finishes the one before (map_finish.cuh: y + D u
// + the sum so far, to memory). Then all warps of the block meet: that is a turn. Where there are few channels for a
// GPU, so that what one warp does in a turn is what the scan takes, more warps share it (MapShape). Features of a tile
// and x, shared by the block, come by asynchronous copies (map_copies.cuh). More than kFold states take several turns
// over the map. Nothing crosses channels: a NaN stays in its channel.
#pragma once

#include "kernels/map_copies.cuh"
#include "kernels/map_finish.cuh"
#include "kernels/map_recurrence.cuh"
#include "kernels/map_steps.cuh"

#ifdef MTMAMBA_SIMT

namespace mtmamba {

// A run is prepared in kShare turns, scanned in the next, and finished in the one after that.
template <typename T, int kPer> MTMAMBA_DEVICE int turnsOf(int length) { // whole tiles of them
    int const runs = (length + kMapRun - 1) / kMapRun;
    return (runs + 2 * MapShape<T, kPer>::kShare + kTileRuns - 1) / kTileRuns * kTileRuns;
}

// A team's warp that scans: kFold states from fold * kFold on, or its share of them, through the map in
// place.direction.
template <typename T, int kPer>
MTMAMBA_DEVICE void scanRuns(MapLaunch<T> const& launch, MapPlace const& place, MapMemory<T, kPer>& memory, int share,
                             int fold) {
    using S = MapShape<T, kPer>;
    SelectiveScan2DParams<T> const& p = launch.p;
    TeamMemory<T, kPer>& own = memory.teams[place.team];
    MapStates<kPer> states;
    MTMAMBA_UNROLL
    for (int s = 0; s < 2 * kPer * MapStates<kPer>::kOf; ++s) {
        int const i = s / (2 * kPer), j = s / kPer % 2, r = s % kPer;
        int64_t const state = fold * kFold + 8 * (i + share) + 2 * mapInQuad() + j;
        int64_t const channel = place.row(p) + place.within(kPer * mapQuad() + r);
        states.A[r][i][j] = place.channels > 0 && state < p.states ? p.A[channel * p.states + state] : 0.F;
        states.h[r][i][j] = 0.F;
    }
    int const length = launch.length(), runs = (length + kMapRun - 1) / kMapRun;
    int at = 0; // of the run in the buffers of B and C
    for (int turn = 0; turn < S::kShare; ++turn) {
        meetBlock<S::kThreads>();
    }
#pragma unroll 1
    for (int run = 0; run < turnsOf<T, kPer>(length) - S::kShare; ++run) {
        meetBlock<S::kThreads>();
        if (run < runs && place.channels > 0) {
            stepStates<T, kPer>(own.steps[run % 2], share, memory.B[0] + at, memory.C[0] + at, memory.zeros, states);
            at = at == S::kPlanes * kMapTile * kFold - kMapRun * kFold ? 0 : at + kMapRun * kFold;
        }
    }
}

// The warps that prepare, in the turns of scanRuns. For 16 channels: a run in each turn; then, or rather meanwhile, it
// finishes the run that was in the same place, two before.
template <typename T, int kPer>
MTMAMBA_DEVICE void prepareRuns(MapLaunch<T> const& launch, MapPlace const& place, MapMemory<T, kPer>& memory, int fold,
                                MapFinisher<T, kPer> finisher) {
    int const length = launch.length();
    MapPreparer<T, kPer> preparer(launch, place, memory);
    RunCopies<T, kPer> copies(launch, place, memory, fold);
#pragma unroll 1
    for (int tile = 0; tile < turnsOf<T, kPer>(length) * kMapRun; tile += kMapTile) {
        MTMAMBA_UNROLL
        for (int run = 0; run < kTileRuns; ++run) {
            copies.meet(run);
            int const first = tile + run * kMapRun;
            if (place.channels > 0) {
                if (first >= kMapTile) {
                    finisher.read(run);
                }
                if (first < length) {
                    preparer.project(first, run);
                }
                if (first >= kMapTile) {
                    finisher.finish(first - kMapTile);
                }
                __syncwarp(); // y has been read
                if (first < length) {
                    preparer.make(run);
                }
            }
        }
        preparer.nextTile();
    }
}
// For 8: every second run, from `share` on, in two turns.
template <typename T, int kPer>
MTMAMBA_DEVICE void prepareShare(MapLaunch<T> const& launch, MapPlace const& place, MapMemory<T, kPer>& memory,
                                 int share) {
    constexpr int kThreads = MapShape<T, kPer>::kThreads;
    int const length = launch.length(), turns = turnsOf<T, kPer>(length);
    MapPreparer<T, kPer> preparer(launch, place, memory);
    if (share == 1) {
        meetBlock<kThreads>();
    }
#pragma unroll 1
    for (int run = share; run + share < turns; run += kTileRuns) {
        bool const is = place.channels > 0 && run * kMapRun < length;
        meetBlock<kThreads>();
        if (is) {
            preparer.project(run * kMapRun, share);
        }
        meetBlock<kThreads>();
        if (is) {
            preparer.make(share);
        }
        preparer.nextTile();
    }
    if (share == 1) {
        meetBlock<kThreads>();
    }
}

// The warp that finishes the runs of all teams, each in the turn after its scan.
template <typename T, int kPer>
MTMAMBA_DEVICE void finishRuns(MapLaunch<T> const& launch, MapFinisher<T, kPer> finisher) {
    constexpr int kThreads = MapShape<T, kPer>::kThreads, kBehind = MapShape<T, kPer>::kShare + 1;
    int const length = launch.length(), turns = turnsOf<T, kPer>(length);
#pragma unroll 1
    for (int run = -kBehind; run < turns - kBehind; ++run) {
        meetBlock<kThreads>();
        if (run >= 0) {
            finisher.read(run);
            finisher.finish(run * kMapRun);
        }
    }
}

// The warp that copies, where those that prepare do not.
template <typename T, int kPer>
MTMAMBA_DEVICE void copyRuns(MapLaunch<T> const& launch, MapPlace const& place, MapMemory<T, kPer>& memory, int fold) {
    int const length = launch.length();
    RunCopies<T, kPer> copies(launch, place, memory, fold);
#pragma unroll 1
    for (int first = 0; first < turnsOf<T, kPer>(length) * kMapRun; first += kMapTile) {
        MTMAMBA_UNROLL
        for (int run = 0; run < kTileRuns; ++run) {
            copies.meet(run);
        }
    }
}

// The direction's parameters to shared memory, by a warp of the team. Ends without a barrier.
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
        memory.teams[place.team].bias[lane] = p.dtBias[row + place.within(lane)] * kLog2E;
        float skip = 0.F; // of all directions, for the first one to add
        for (int k = 0; k < kDirections && place.direction == 0; ++k) {
            skip += p.D[row + k * p.channels + place.within(lane)];
        }
        memory.teams[place.team].skip[lane] = skip;
    }
    float* const weights = memory.weights() + place.team * S::kChannels * 2 * columns;
    for (int i = lane; launch.staged() && i < S::kChannels * columns; i += 32) {
        int const c = i / columns, r = i % columns;
        float const weight = r < rank ? p.dtWeight[(row + place.within(c)) * rank + r] * kLog2E : 0.F;
        float* const to = weights + weightIndex<kPer>(c, r);
        to[0] = weight;
        to[2] = lostByTf32(weight);
    }
}

template <typename T, int kPer>
MTMAMBA_DEVICE MapFinisher<T, kPer> finisherOf(MapLaunch<T> const& launch, MapTurn<T> const& turn,
                                               MapPlace const& place, MapMemory<T, kPer>& memory, int fold) {
    bool const last = fold + 1 == static_cast<int>(foldsOf(launch.p.states));
    bool const direct = launch.direct && turn.isLast() && turn.isWhole() && last;
    return {launch, place, memory, fold, launch.sums[turn.part()], turn.isFirst() && fold == 0, direct};
}

// A block's scans, one after another: work(turn, place of the team, fold) after a barrier.
template <typename T, int kPer, typename Work>
MTMAMBA_DEVICE void forEachScan(MapLaunch<T> const& launch, int team, Work const& work) {
    int const folds = static_cast<int>(foldsOf(launch.p.states));
    for (MapTurn<T> turn(launch); turn.more(); turn.step()) {
        MapPlace const place = placeOf<T, kPer>(launch, turn, team);
        for (int fold = 0; fold < folds; ++fold) {
            meetBlock<MapShape<T, kPer>::kThreads>(); // the scan before is done
            work(turn, place, fold);
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
template <typename T, int kPer> constexpr int kMapBlocksPerSM = sizeof(T) == sizeof(float) ? 1 : 2 - kLittleMemory;

template <typename T, int kPer>
__global__ void __launch_bounds__(MapShape<T, kPer>::kThreads, kMapBlocksPerSM<T, kPer>)
    mapScanKernel(MapLaunch<T> launch) {
    using S = MapShape<T, kPer>;
    auto& memory = *static_cast<MapMemory<T, kPer>*>(sharedMemory());
    int const warp = static_cast<int>(threadIdx.x) / 32, team = warp % S::kTeams, kind = warp / S::kTeams;
    for (int i = static_cast<int>(threadIdx.x); i < (kMapRun + 2) * kFold; i += S::kThreads) {
        memory.zeros[i] = 0.F;
    }
    if (kind < S::kShare) {
        forEachScan<T, kPer>(launch, team, [&](MapTurn<T> const&, MapPlace const& place, int fold) {
            scanRuns(launch, place, memory, kind, fold);
        });
    } else if (kind < 2 * S::kShare) {
        forEachScan<T, kPer>(launch, team, [&](MapTurn<T> const& turn, MapPlace const& place, int fold) {
            if (fold == 0 && kind == S::kShare) {
                startDirection(launch, place, memory);
            }
            if constexpr (S::kHelpers) {
                prepareShare(launch, place, memory, kind - S::kShare);
            } else {
                prepareRuns(launch, place, memory, fold, finisherOf(launch, turn, place, memory, fold));
            }
        });
    } else if (warp % 2 == 0) {
        forEachScan<T, kPer>(launch, 0, [&](MapTurn<T> const& turn, MapPlace const& place, int fold) {
            finishRuns(launch, finisherOf(launch, turn, place, memory, fold));
        });
    } else {
        forEachScan<T, kPer>(launch, 0, [&](MapTurn<T> const&, MapPlace const& place, int fold) {
            copyRuns(launch, place, memory, fold);
        });
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
