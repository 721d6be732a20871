// The scan of SelectiveScan2D: the states of a channel lie across the lanes of a warp.
//
// A block holds kChannels channels of one image and goes through their map in tiles of kTile tokens, one direction
// after another. kLanes threads share a channel: each keeps kStates of its kFold states in registers and steps them
// through all tokens in order, so that an update costs one exponential and four multiplications or multiply-adds, and
// no barrier. Per tile:
//   1. the steps d = softplus(dt_weight . low + dt_bias), the product on the tensor cores; (d, d u) to shared memory;
//   2. each lane steps its states through the tile, reading (d, d u) of its channel and (B, C) of its states; its share
//      of y goes to shared memory;
//   3. the shares, D u and the sum so far are added and stored.
// In 1 and 3 a thread has the tokens and channels that the tensor cores give it: see Fragments. The features of the
// next tile (asynchronous copies) and its x are under way meanwhile. More than kFold states take several turns over the
// map. Nothing crosses channels: a NaN stays in its channel.
#pragma once

#include "kernels/map_steps.cuh"

#ifdef MTMAMBA_SIMT

namespace mtmamba {

// B and C of a lane's states at one token: (B, C) of state by state.
template <int kStates, typename T> MTMAMBA_DEVICE void loadPairs(Two<T> const* source, float* pairs) {
    constexpr size_t kBytes = kStates * sizeof(Two<T>);
    Two<T> twos[kStates];
    if constexpr (kBytes == 4) {
        uint32_t const raw = *reinterpret_cast<uint32_t const*>(source);
        memcpy(static_cast<void*>(twos), &raw, sizeof raw);
    } else if constexpr (kBytes == 8) {
        uint2 const raw = *reinterpret_cast<uint2 const*>(source);
        memcpy(static_cast<void*>(twos), &raw, sizeof raw);
    } else {
        MTMAMBA_UNROLL
        for (size_t i = 0; i < kBytes / 16; ++i) {
            uint4 const raw = reinterpret_cast<uint4 const*>(source)[i];
            memcpy(reinterpret_cast<char*>(twos) + 16 * i, &raw, sizeof raw);
        }
    }
    MTMAMBA_UNROLL
    for (int n = 0; n < kStates; ++n) {
        pairs[2 * n] = toFloat(twos[n].first);
        pairs[2 * n + 1] = toFloat(twos[n].second);
    }
}

// 2. The lane's states `h` through the tile. A: in units of ln 2.
template <typename T, int kLanes>
MTMAMBA_DEVICE void stepStates(MapMemory<T, kLanes>& memory, int buffer, float const* A, float* h) {
    using S = MapShape<kLanes>;
    constexpr int kTogether = 4; // tokens
    int const channel = static_cast<int>(threadIdx.x) / kLanes, share = static_cast<int>(threadIdx.x) % kLanes;
    float const* steps = memory.steps + channel * S::kStepPitch;
    Two<T> const* BC = memory.BC[buffer] + S::kStates * share;
    float* shares = memory.shares + channel * S::kSharesPitch + share * S::kSharePitch;
#pragma unroll 2
    for (int t = 0; t < S::kTile; t += kTogether) {
        float y[kTogether];
        MTMAMBA_UNROLL
        for (int i = 0; i < kTogether; i += 2) {
            float two[4]; // (d, d u) of two tokens
            loadFour(steps + 2 * (t + i), two);
            MTMAMBA_UNROLL
            for (int j = 0; j < 2; ++j) {
                float pairs[2 * S::kStates];
                loadPairs<S::kStates>(BC + (t + i + j) * kFold, pairs);
                y[i + j] = 0.F;
                MTMAMBA_UNROLL
                for (int n = 0; n < S::kStates; ++n) {
                    advance<DeviceMath>(h[n], y[i + j], two[2 * j] * A[n], two[2 * j + 1], pairs[2 * n],
                                        pairs[2 * n + 1]);
                }
            }
        }
        *reinterpret_cast<float4*>(shares + t) = make_float4(y[0], y[1], y[2], y[3]);
    }
}

// 3. The shares of y of the thread's fragments, added to own.base.
template <typename T, int kLanes>
MTMAMBA_DEVICE void addShares(MapMemory<T, kLanes> const& memory, MapOwn<T, kLanes>& own) {
    using F = Fragments<kLanes>;
    using S = MapShape<kLanes>;
    MTMAMBA_UNROLL
    for (int f = 0; f < F::kCount; ++f) {
        MTMAMBA_UNROLL
        for (int j = 0; j < 2; ++j) { // channels
            float const* const from = memory.shares + (F::channel(f) + j) * S::kSharesPitch + F::token(f);
            MTMAMBA_UNROLL
            for (int share = 0; share < kLanes; ++share) {
                float2 const two = *reinterpret_cast<float2 const*>(from + share * S::kSharePitch);
                own.base[f].value[0][j] += two.x;
                own.base[f].value[1][j] += two.y;
            }
        }
    }
}

// own.base to `target`, of the tile's first `count` tokens.
template <typename Target, typename T, int kLanes>
MTMAMBA_DEVICE void saveOwn(Plane<Target> const& target, int const* pixels, int count, MapOwn<T, kLanes> const& own) {
    using F = Fragments<kLanes>;
    MTMAMBA_UNROLL
    for (int f = 0; f < F::kCount; ++f) {
        int2 const two = *reinterpret_cast<int2 const*>(pixels + F::token(f));
        if (F::token(f) < count) {
            target.save(two.x, F::channel(f), own.base[f].value[0][0], own.base[f].value[0][1]);
        }
        if (F::token(f) + 1 < count) {
            target.save(two.y, F::channel(f), own.base[f].value[1][0], own.base[f].value[1][1]);
        }
    }
}

// The block's channels in place.direction, kFold states from fold * kFold on. fresh, last: nothing has been summed yet,
// nothing follows.
template <typename T, int kLanes>
MTMAMBA_DEVICE void scanFold(MapLaunch<T> const& launch, MapPlace const& place, MapMemory<T, kLanes>& memory,
                             MapChannels<kLanes> const& channels, int fold, float* sums, bool fresh, bool last) {
    using S = MapShape<kLanes>;
    using F = Fragments<kLanes>;
    SelectiveScan2DParams<T> const& p = launch.p;
    int const thread = static_cast<int>(threadIdx.x), length = static_cast<int>(p.height * p.width);
    int64_t const scan = place.image * kDirections + place.direction, folds = (p.states + kFold - 1) / kFold;
    Two<T> const* const BC = launch.BC + (scan * folds + fold) * launch.pitch * kFold;
    float const* const low = launch.low + scan * launch.pitch * launch.lowColumns;
    Plane<T const> const x(launch.tokens, launch, place);
    Plane<float> const sum(sums, launch, place);
    Plane<T> const y(p.y, launch, place);
    float A[S::kStates], h[S::kStates];
    MTMAMBA_UNROLL
    for (int n = 0; n < S::kStates; ++n) {
        int64_t const state = fold * kFold + thread % kLanes * S::kStates + n;
        int64_t const at = (place.row(p) + place.within(thread / kLanes)) * p.states;
        A[n] = state < p.states ? p.A[at + state] * kLog2E : 0.F;
        h[n] = 0.F;
    }
    PixelWalk walk(thread % S::kTile, place.direction, static_cast<int>(p.height), static_cast<int>(p.width));
    MapOwn<T, kLanes> own;
    startTile(launch, place, memory, BC, low, 0, 0, walk);
    int buffer = 0;
    for (int first = 0; first < length; first += S::kTile) {
        bool const more = first + S::kTile < length;
        int const* const pixels = memory.pixels[buffer];
        __pipeline_wait_prior(0);
        __syncthreads(); // the tile's features and pixels are here, and the tile before is done
        if (first == 0) {
            loadInputs(x, pixels, own);
        }
        makeSteps(launch, place, memory, channels, low + static_cast<int64_t>(first) * launch.lowColumns, buffer,
                  fold == 0, own);
        if (more) {
            startTile(launch, place, memory, BC, low, first + S::kTile, 1 - buffer, walk);
        }
        __syncthreads();
        if (more) {
            loadInputs(x, memory.pixels[1 - buffer], own);
        }
        Packed<float> before[F::kCount][2];
        if (!fresh) {
            MTMAMBA_UNROLL
            for (int f = 0; f < F::kCount; ++f) {
                int2 const two = *reinterpret_cast<int2 const*>(pixels + F::token(f));
                before[f][0] = sum.load(two.x, F::channel(f));
                before[f][1] = sum.load(two.y, F::channel(f));
            }
        }
        stepStates(memory, buffer, A, h);
        __syncthreads();
        addShares(memory, own);
        if (!fresh) {
            MTMAMBA_UNROLL
            for (int f = 0; f < F::kCount; ++f) {
                MTMAMBA_UNROLL
                for (int i = 0; i < 2; ++i) {
                    Two<float> const two = before[f][i].values();
                    own.base[f].value[i][0] += two.first;
                    own.base[f].value[i][1] += two.second;
                }
            }
        }
        if (last && launch.parts == 1) {
            saveOwn(y, pixels, length - first, own);
        } else {
            saveOwn(sum, pixels, length - first, own);
        }
        buffer = 1 - buffer;
    }
}

// The direction's weights to shared memory, and what the thread keeps of its channels. Ends without a barrier.
template <typename T, int kLanes>
MTMAMBA_DEVICE void startDirection(MapLaunch<T> const& launch, MapPlace const& place, MapMemory<T, kLanes>& memory,
                                   MapChannels<kLanes>& own) {
    using F = Fragments<kLanes>;
    constexpr int kChannels = MapShape<kLanes>::kChannels;
    SelectiveScan2DParams<T> const& p = launch.p;
    int const rank = static_cast<int>(p.rank), columns = launch.lowColumns;
    int64_t const row = place.row(p);
    MTMAMBA_UNROLL
    for (int i = 0; i < 2 * MapChannels<kLanes>::kWide; ++i) {
        int64_t const channel = row + place.within(F::channel(i / 2 * F::kDown) + i % 2);
        own.skip[i / 2][i % 2] = p.D[channel];
        own.bias[i / 2][i % 2] = p.dtBias[channel];
    }
    for (int i = static_cast<int>(threadIdx.x); columns <= kStagedRank + 4 && i < kChannels * columns;
         i += kMapThreads) {
        int const c = i / columns, r = i % columns;
        float const weight = r < rank ? p.dtWeight[(row + place.within(c)) * rank + r] : 0.F;
        memory.weights()[i] = weight;
        memory.weights()[kChannels * columns + i] = lostByTf32(weight);
    }
}

// By registers.
template <typename T, int kLanes> constexpr int kMapBlocksPerSM = sizeof(T) == sizeof(float) && kLanes == 4 ? 2 : 3;

template <typename T, int kLanes>
__global__ void __launch_bounds__(kMapThreads, kMapBlocksPerSM<T, kLanes>) mapScanKernel(MapLaunch<T> launch) {
    using S = MapShape<kLanes>;
    auto& memory = *static_cast<MapMemory<T, kLanes>*>(sharedMemory());
    SelectiveScan2DParams<T> const& p = launch.p;
    int64_t const block = blockIdx.x, unit = block / launch.parts;
    int const part = static_cast<int>(block % launch.parts);
    MapPlace place{};
    place.image = unit / launch.channelBlocks;
    place.group = place.image % p.groups;
    place.channel = unit % launch.channelBlocks * S::kChannels;
    int64_t const left = p.channels - place.channel;
    place.channels = left < S::kChannels ? static_cast<int>(left) : S::kChannels;
    int const folds = static_cast<int>((p.states + kFold - 1) / kFold);
    MapChannels<kLanes> channels;
    for (int k = part; k < kDirections; k += launch.parts) {
        place.direction = k;
        __syncthreads(); // the direction before has read its weights
        startDirection(launch, place, memory, channels);
        for (int fold = 0; fold < folds; ++fold) {
            __syncthreads(); // the scan before is done
            bool const last = k + launch.parts >= kDirections && fold + 1 == folds;
            scanFold(launch, place, memory, channels, fold, launch.sums[part], k == part && fold == 0, last);
        }
    }
}

template <typename T, int kLanes> cudaError_t launchMapScan(MapLaunch<T> launch, cudaStream_t stream) {
    constexpr int kChannels = MapShape<kLanes>::kChannels;
    launch.channelBlocks = (launch.p.channels + kChannels - 1) / kChannels;
    launch.pairs = launch.p.channels % 2 == 0 && reinterpret_cast<uintptr_t>(launch.p.y) % (2 * sizeof(T)) == 0;
    int64_t const blocks = launch.p.batch * launch.p.groups * launch.channelBlocks * launch.parts;
    return launchLine(mapScanKernel<T, kLanes>, blocks, kMapThreads, MapMemory<T, kLanes>::bytes(launch.lowColumns),
                      stream, launch);
}

} // namespace mtmamba

#endif // MTMAMBA_SIMT
