// The scan of SelectiveScan2D: 16 states of 16 or 8 channels in the registers of a warp, laid out as the tensor cores
// lay out their matrices.
//
// What the recurrence h = a h + b, y = C . h needs of all channels and states at a token are products of matrices:
// b = (d u) B^T, of rank one, and y = h C. Both go to the tensor cores, whose accumulators have the states where the
// lanes have them, and whose left operand has them there too. What is left for an update is a = 2^(d A) and a
// multiply-add: one multiplication, one exponential, one multiply-add; and for 8 channels of 16 states each, at a
// token, two to four products and one or two selections. Four lanes share a channel, each with 4 of its kFold states.
//
//   b  m16n8k4, tf32. Rows: channels. K: d u in two parts of 11 bits, and B in two where it is float32, so that b has
//      float32's accuracy. For half precision the second parts of B are zero.
//   y  m16n8k8, tf32. Rows: channels; kPer = 1: 8 channels at two tokens. K: 8 states. Columns: the C of 8 tokens, of
//      which a state needs that of its own: each lane keeps it when it is its turn, and after 8 tokens has y of two of
//      them. float32: three products, of both in two parts.
//
// The state never passes through the tensor cores, whose sums are cut off.
//
// Two warps share 8 kPer channels (kPer: 2 or 1) and go through the map in runs of kMapRun tokens, one direction after
// another. While the first steps the states through a run, the second finishes the run before (y + D u + the sum so
// far, to memory) and prepares the next (d = softplus(dt_weight . low + dt_bias) and d u); then all warps of the block
// meet. Features of a tile, shared by the block, and x come by asynchronous copies meanwhile. More than kFold states
// take several turns over the map. Nothing crosses channels: a NaN stays in its channel.
#pragma once

#include "kernels/map_steps.cuh"

#ifdef MTMAMBA_SIMT

namespace mtmamba {

// Cutting h to 11 bits makes y smaller by 0.36 units of the 11th bit on average: by this.
template <typename T> constexpr float kRestored = sizeof(T) == sizeof(float) ? 1.F : 1.F + 0.72F / 2048;

// A lane's states, of channels kPer quad + r: [r][8 i + 2 inQuad + j].
template <int kPer> struct MapStates {
    float h[kPer][2][2], A[kPer][2][2]; // A: in units of ln 2
};

// b of one token, as MapStates has its states: [i][2 r + j]. inputs: a part of d u of channels kPer quad + r.
template <typename T> MTMAMBA_DEVICE void inputProducts(float const (&inputs)[2], float const* B, float (&b)[2][4]) {
    float2 const two = *reinterpret_cast<float2 const*>(B); // states quad and quad + 8
    float values[2] = {two.x, two.y};
    MTMAMBA_UNROLL
    for (int i = 0; i < 2; ++i) {
        if (sizeof(T) == sizeof(float)) {
            float const high = roundedToTf32(values[i]);
            values[i] = mapInQuad() < 2 ? high : values[i] - high;
        }
        productTf32(inputs, values[i], b[i]);
    }
}

// y = h C: h [16, 16] of two channels, or of a channel at two tokens; C: of the token of each column.
template <typename T>
MTMAMBA_DEVICE void outputProducts(float const (&first)[2][2], float const (&second)[2][2], float const (&C)[4],
                                   float* y) {
    MTMAMBA_UNROLL
    for (int i = 0; i < 2; ++i) {
        float const h[4] = {first[i][0], second[i][0], first[i][1], second[i][1]};
        float const part[2] = {C[2 * i], C[2 * i + 1]};
        if (i == 0) {
            productTf32(h, part, y);
        } else {
            multiplyTf32(h, part, y);
        }
        if (sizeof(T) == sizeof(float)) {
            float const lost[4] = {lostByTf32(h[0]), lostByTf32(h[1]), lostByTf32(h[2]), lostByTf32(h[3])};
            float const lostOfC[2] = {lostByTf32(part[0]), lostByTf32(part[1])};
            multiplyTf32(lost, part, y);
            multiplyTf32(h, lostOfC, y);
        }
    }
}

// The warp's states through a run, whose y takes the place of d. B, C: of the run's first token.
template <typename T, int kPer>
MTMAMBA_DEVICE void stepStates(float* steps, float const* B, float const* C, float const* zeros,
                               MapStates<kPer>& states) {
    using S = MapShape<T, kPer>;
    constexpr int kTogether = 4 / kPer; // tokens
    int const quad = mapQuad(), inQuad = mapInQuad();
    bool const noB = sizeof(T) != sizeof(float) && inQuad >= 2; // only the first two of four products are needed
    B = noB ? zeros + (2 * quad + 16) % (2 * kFold) : B + 2 * quad;
    C += quad * kFold + 4 * inQuad;
    steps += quad * S::kStepPitch;
    float const* inputs = steps + (inQuad % 2 ? S::kLost + S::kSwap : S::kHigh);
    int const ahead = inQuad % 2 && S::kSwap ? -S::kSwap : 8 * kPer;
#pragma unroll 1
    for (int group = 0; group < kMapRun; group += 8) {
        float c[4], mine[2 * kPer] = {}, before[2][2] = {}; // before: h of the token before, for kPer = 1
        loadFour(C, c);
#pragma unroll 4
        for (int first = 0; first < 8; first += kTogether) {
            float d[4], du[4]; // [token][channel]
            loadFour(steps + first * kPer, d);
            loadFour(inputs + first * kPer, du);
            MTMAMBA_UNROLL
            for (int t = 0; t < kTogether; ++t) {
                // Two neighbours in registers: for kPer = 1 two tokens, of which one row of the product is wanted.
                int const left = t * kPer / 2 * 2, row = t * kPer % 2;
                float b[2][4];
                inputProducts<T>({du[left], du[left + 1]}, B + (first + t) * kFold, b);
                MTMAMBA_UNROLL
                for (int s = 0; s < 4 * kPer; ++s) {
                    int const i = s / (2 * kPer), j = s / kPer % 2, r = s % kPer;
                    float const decay = exp2Approx(d[t * kPer + r] * states.A[r][i][j]);
                    states.h[r][i][j] = fmaf(decay, states.h[r][i][j], b[i][2 * (row + r) + j]);
                }
                bool const turn = inQuad == (first + t) / 2;
                float y[4];
                if (kPer == 2) {
                    outputProducts<T>(states.h[0], states.h[kPer - 1], c, y);
                    MTMAMBA_UNROLL
                    for (int r = 0; r < kPer; ++r) {
                        mine[t % 2 * kPer + r] = turn ? y[2 * r + t % 2] : mine[t % 2 * kPer + r];
                    }
                } else if (t % 2) {
                    outputProducts<T>(before, states.h[0], c, y);
                    mine[0] = turn ? y[0] : mine[0];
                    mine[1] = turn ? y[3] : mine[1];
                } else {
                    memcpy(before, states.h[0], sizeof before);
                }
            }
        }
        __syncwarp(); // d of these tokens has been read
        saveTogether<2 * kPer>(steps + 2 * inQuad * kPer, mine);
        B += 8 * kFold;
        C += 8 * kFold;
        steps += 8 * kPer;
        inputs += ahead;
    }
}

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
        states.A[r][i][j] = place.channels > 0 && state < p.states ? p.A[channel * p.states + state] * kLog2E : 0.F;
        states.h[r][i][j] = 0.F;
    }
    int const length = static_cast<int>(p.height * p.width);
    int const runs = (length + kMapRun - 1) / kMapRun, turns = runs + runs % 2 + 2;
    int const scanned = place.channels > 0 ? runs : 0;
    int at = 0; // of the run in the buffers of B and C
#pragma unroll 1
    for (int turn = 0; turn < turns; ++turn) {
        meetBlock<MapShape<T, kPer>::kThreads>();
        if (turn > 0 && turn <= scanned) { // run turn - 1
            stepStates<T, kPer>(own.steps[(turn - 1) % 2], memory.B[0] + at, memory.C[0] + at, memory.zeros, states);
            at = at == (kMapAhead + 1) * kMapTile * kFold - kMapRun * kFold ? 0 : at + kMapRun * kFold;
        }
    }
}

// What the second warp of a pair does, in the turns of scanRuns. sums: the part's; fresh, last: nothing has been summed
// yet, nothing follows.
template <typename T, int kPer>
MTMAMBA_DEVICE void prepareRuns(MapLaunch<T> const& launch, MapPlace const& place, MapMemory<T, kPer>& memory, int fold,
                                float* sums, bool fresh, bool last) {
    using S = MapShape<T, kPer>;
    SelectiveScan2DParams<T> const& p = launch.p;
    int const lane = static_cast<int>(threadIdx.x) % 32, mine = lane % 2 * S::kOwn; // the first channel that it moves
    int const height = static_cast<int>(p.height), width = static_cast<int>(p.width), length = height * width;
    int64_t const scan = static_cast<int64_t>(place.image) * kDirections + place.direction,
                  folds = (p.states + kFold - 1) / kFold;
    float const* const low = launch.low + scan * launch.pitch * launch.lowColumns;
    Features<T, kPer> features(launch.BC + (scan * folds + fold) * launch.pitch * (2 * kFold), low);
    Plane<T const, S::kOwn> const x(launch.tokens, launch, place);
    Plane<float, S::kOwn> const sum(sums, launch, place);
    PairMemory<T, kPer>& own = memory.pairs[place.pair];
    PixelWalk toLoad(lane / 2, place.direction, height, width), toSave = toLoad;
    static_assert(kMapAhead == 2, "x of four tiles");
    T *before = own.x[3], *now = own.x[0], *next = own.x[1], *afterNext = own.x[2];
    float summed[S::kOwn] = {}; // what has been summed of the next run to finish
    // The copies of the tile that begins with token `first`; none past the end.
    auto const start = [&](int first, int buffer, T* target) {
        if (first < length) {
            features.next(launch, memory, buffer);
        }
        MTMAMBA_UNROLL
        for (int i = 0; i < kMapTile; i += kMapRun) {
            if (place.moves && first < length) { // past the end: pixel 0
                x.copy(first + i + lane / 2 < length ? toLoad.at : 0, target + (i + lane / 2) * S::kInputPitch + mine);
            }
            toLoad.step();
        }
        __pipeline_commit();
    };
    auto const loadSum = [&](int first) {
        if (!fresh && place.moves && first + lane / 2 < length) {
            sum.load(toSave.at, summed);
        }
    };
    auto const finish = [&](int first, float const* steps, T const* inputs) { // the run that begins with token `first`
        if (place.moves && first + lane / 2 < length) {
            float values[S::kOwn], u[S::kOwn], skip[S::kOwn];
            readOutputs<T, kPer>(steps, values);
            MTMAMBA_UNROLL
            for (int i = 0; i < S::kOwn; ++i) {
                values[i] = fmaf(values[i], kRestored<T>, summed[i]);
            }
            if (fold == 0) {
                loadTogether<S::kOwn>(inputs + lane / 2 * S::kInputPitch + mine, u);
                loadTogether<S::kOwn>(own.skip + mine, skip);
                MTMAMBA_UNROLL
                for (int i = 0; i < S::kOwn; ++i) {
                    values[i] = fmaf(skip[i], u[i], values[i]);
                }
            }
            if (last && launch.direct) {
                Plane<T, S::kOwn>(p.y, launch, place).save(toSave.at, values);
            } else {
                sum.save(toSave.at, values);
            }
        }
        toSave.step();
        loadSum(first + kMapRun);
        __syncwarp();
    };
    auto const prepare = [&](int first, int buffer, int run, float* steps, T const* inputs) {
        Four raw[kPer];
        startWithBias<kPer>(own.bias, raw);
        if (launch.staged()) {
            addLowRank<T, kPer>(launch.lowColumns, memory.weights() + place.pair * S::kChannels * 2 * launch.lowColumns,
                                memory.low(buffer, launch) + run * launch.lowColumns, raw);
        } else {
            addAnyRank<T, kPer>(launch, place, low + static_cast<int64_t>(first) * launch.lowColumns, raw);
        }
        makeSteps<T, kPer>(steps, inputs, raw);
    };
    start(0, 0, now);
    start(kMapTile, 1, next);
    loadSum(0);
    int buffer = 0;
#pragma unroll 1
    for (int first = 0; first < length + kMapTile; first += kMapTile) {
        __pipeline_wait_prior(kMapAhead - 1);
        int const free = buffer == 0 ? kMapAhead : buffer - 1; // the buffer of the tile before
        MTMAMBA_UNROLL
        for (int run = 0; run < kMapTile; run += kMapRun) {
            meetBlock<MapShape<T, kPer>::kThreads>();
            if (run > 0) {
                start(first + kMapAhead * kMapTile, free, afterNext);
            }
            if (place.channels <= 0) {
                continue;
            }
            if (first > 0) {
                finish(first - kMapTile + run, own.steps[run / kMapRun], before + run * S::kInputPitch);
            }
            if (first + run < length) {
                prepare(first + run, buffer, run, own.steps[run / kMapRun], now + run * S::kInputPitch);
            }
        }
        buffer = buffer == kMapAhead ? 0 : buffer + 1;
        T* const old = before;
        before = now;
        now = next;
        next = afterNext;
        afterNext = old;
    }
    __pipeline_wait_prior(0);
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
        memory.pairs[place.pair].bias[lane] = p.dtBias[row + place.within(lane)];
        memory.pairs[place.pair].skip[lane] = p.D[row + place.within(lane)];
    }
    float* const weights = memory.weights() + place.pair * S::kChannels * 2 * columns;
    for (int i = lane; launch.staged() && i < S::kChannels * columns; i += 32) {
        int const c = i / columns, r = i % columns;
        float const weight = r < rank ? p.dtWeight[(row + place.within(c)) * rank + r] : 0.F;
        int const swap = static_cast<int>(lowSwap(static_cast<uint32_t>(c), static_cast<uint32_t>(columns)));
        float* const to = weights + c * 2 * columns + ((r / 8 * 16) ^ swap) + r % 4 * 4 + r % 8 / 4; // as lowIndex
        to[0] = weight;
        to[2] = lostByTf32(weight);
    }
}

// The kernel's warps of the first kind, and of the second.
template <typename T, int kPer>
MTMAMBA_DEVICE void scanAll(MapLaunch<T> const& launch, MapPlace place, int part, MapMemory<T, kPer>& memory) {
    int const folds = static_cast<int>((launch.p.states + kFold - 1) / kFold);
    for (place.direction = part; place.direction < kDirections; place.direction += launch.parts) {
        for (int fold = 0; fold < folds; ++fold) {
            meetBlock<MapShape<T, kPer>::kThreads>(); // the scan before is done
            scanRuns(launch, place, memory, fold);
        }
    }
}
template <typename T, int kPer>
MTMAMBA_DEVICE void prepareAll(MapLaunch<T> const& launch, MapPlace place, int part, MapMemory<T, kPer>& memory) {
    int const folds = static_cast<int>((launch.p.states + kFold - 1) / kFold);
    for (place.direction = part; place.direction < kDirections; place.direction += launch.parts) {
        for (int fold = 0; fold < folds; ++fold) {
            bool const last = place.direction + launch.parts >= kDirections && fold + 1 == folds;
            meetBlock<MapShape<T, kPer>::kThreads>();
            if (fold == 0) {
                startDirection(launch, place, memory);
            }
            prepareRuns(launch, place, memory, fold, launch.sums[part], place.direction == part && fold == 0, last);
        }
    }
}

// By registers, and by shared memory: 100 KiB of it but for compute capability 8.0 and 9.0.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ != 800 && __CUDA_ARCH__ != 900
constexpr int kMapPairsPerSM = 4;
#else
constexpr int kMapPairsPerSM = 8;
#endif
template <typename T, int kPer>
constexpr int kMapBlocksPerSM = sizeof(T) == sizeof(float) ? 1 : kMapPairsPerSM / MapShape<T, kPer>::kPairs;

template <typename T, int kPer>
__global__ void __launch_bounds__(MapShape<T, kPer>::kThreads, kMapBlocksPerSM<T, kPer>)
    mapScanKernel(MapLaunch<T> launch) {
    using S = MapShape<T, kPer>;
    auto& memory = *static_cast<MapMemory<T, kPer>*>(sharedMemory());
    SelectiveScan2DParams<T> const& p = launch.p;
    int const block = static_cast<int>(blockIdx.x), part = block % launch.parts, unit = block / launch.parts;
    int const channelBlocks = static_cast<int>(launch.channelBlocks);
    MapPlace place{};
    place.pair = static_cast<int>(threadIdx.x) / 32 % S::kPairs;
    place.image = unit / channelBlocks;
    place.group = place.image % static_cast<int>(p.groups);
    place.channel = (unit % channelBlocks * S::kPairs + place.pair) * S::kChannels;
    int const left = static_cast<int>(p.channels) - place.channel;
    place.channels = left < 0 ? 0 : left < S::kChannels ? left : S::kChannels;
    place.moves = Plane<T, S::kOwn>::first() < place.channels;
    for (int i = static_cast<int>(threadIdx.x); i < (kMapRun + 2) * kFold; i += S::kThreads) {
        memory.zeros[i] = 0.F;
    }
    if (threadIdx.x < 32 * S::kPairs) {
        scanAll(launch, place, part, memory);
    } else {
        prepareAll(launch, place, part, memory);
    }
}

template <typename T, int kPer> cudaError_t launchMapScan(MapLaunch<T> launch, cudaStream_t stream) {
    constexpr int kChannels = MapMemory<T, kPer>::kChannels;
    launch.channelBlocks = (launch.p.channels + kChannels - 1) / kChannels;
    int64_t const blocks = launch.p.batch * launch.p.groups * launch.channelBlocks * launch.parts;
    return launchLine(mapScanKernel<T, kPer>, blocks, MapShape<T, kPer>::kThreads, MapMemory<T, kPer>::bytes(launch),
                      stream, launch);
}

} // namespace mtmamba

#endif // MTMAMBA_SIMT
