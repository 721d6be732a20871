// The steps d = softplus(dt_weight . low + dt_bias) of a tile of SelectiveScan2D.
#pragma once

#include "kernels/map_tile.cuh"

#ifdef MTMAMBA_SIMT

namespace mtmamba {

// The step before softplus, from weights and features in shared memory: float32's accuracy from products of 11-bit
// numbers, each operand in two parts. Features of half precision are one part exactly.
template <typename T, int kLanes>
MTMAMBA_DEVICE void addLowRank(MapMemory<T, kLanes>& memory, int columns, int buffer, Four* raw) {
    using F = Fragments<kLanes>;
    using S = MapShape<kLanes>;
    float const* weights = memory.weights() + F::quad() * columns + F::inQuad();
    float const* low = memory.low(buffer, columns) + 2 * F::quad() * columns + F::inQuad();
    Four rest[F::kCount] = {}; // a sum of its own: half the chain of dependent products
#pragma unroll 1
    for (int r = 0; r < columns - 4; r += 8) {
        MTMAMBA_UNROLL
        for (int f = 0; f < F::kCount; ++f) {
            float const* const w = weights + F::index(f) / F::kDown * 8 * columns + r;
            float const* const l = low + F::index(f) % F::kDown * 16 * columns + r;
            float const a[4] = {l[0], l[columns], l[4], l[columns + 4]};
            float const high[2] = {w[0], w[4]};
            float const lost[2] = {w[S::kChannels * columns], w[S::kChannels * columns + 4]};
            multiplyTf32(a, high, &raw[f].value[0][0]);
            multiplyTf32(a, lost, &rest[f].value[0][0]);
            if (sizeof(T) == sizeof(float)) {
                float const lostOfA[4] = {lostByTf32(a[0]), lostByTf32(a[1]), lostByTf32(a[2]), lostByTf32(a[3])};
                multiplyTf32(lostOfA, high, &rest[f].value[0][0]);
            }
        }
    }
    MTMAMBA_UNROLL
    for (int f = 0; f < F::kCount; ++f) {
        MTMAMBA_UNROLL
        for (int i = 0; i < 4; ++i) {
            raw[f].value[i / 2][i % 2] += rest[f].value[i / 2][i % 2];
        }
    }
}

// The same for any rank, from memory.
template <typename T, int kLanes>
MTMAMBA_DEVICE void addAnyRank(MapLaunch<T> const& launch, MapPlace const& place, float const* low, Four* raw) {
    using F = Fragments<kLanes>;
    int const rank = static_cast<int>(launch.p.rank);
    MTMAMBA_UNROLL
    for (int f = 0; f < F::kCount; ++f) {
        MTMAMBA_UNROLL
        for (int i = 0; i < 4; ++i) {
            int64_t const channel = place.row(launch.p) + place.within(F::channel(f) + i % 2);
            float const* const features = low + (F::token(f) + i / 2) * launch.lowColumns;
            float sum = raw[f].value[i / 2][i % 2];
#pragma unroll 1
            for (int r = 0; r < rank; ++r) {
                sum += launch.p.dtWeight[channel * rank + r] * features[r];
            }
            raw[f].value[i / 2][i % 2] = sum;
        }
    }
}

// D and the step's bias of the thread's channels.
template <int kLanes> struct MapChannels {
    static constexpr int kWide = (Fragments<kLanes>::kCount + Fragments<kLanes>::kDown - 1) / Fragments<kLanes>::kDown;
    float skip[kWide][2], bias[kWide][2];
};

// 1. (d, d u) of the thread's fragments to shared memory, D u to own.base. low: of the tile, for any rank.
template <typename T, int kLanes>
MTMAMBA_DEVICE void makeSteps(MapLaunch<T> const& launch, MapPlace const& place, MapMemory<T, kLanes>& memory,
                              MapChannels<kLanes> const& channels, float const* low, int buffer, bool withSkip,
                              MapOwn<T, kLanes>& own) {
    using F = Fragments<kLanes>;
    Four raw[F::kCount];
    MTMAMBA_UNROLL
    for (int f = 0; f < F::kCount; ++f) {
        MTMAMBA_UNROLL
        for (int i = 0; i < 4; ++i) {
            raw[f].value[i / 2][i % 2] = channels.bias[f / F::kDown][i % 2];
        }
    }
    if (launch.lowColumns <= kStagedRank + 4) {
        addLowRank<T>(memory, launch.lowColumns, buffer, raw);
    } else {
        addAnyRank<T, kLanes>(launch, place, low, raw);
    }
    MTMAMBA_UNROLL
    for (int f = 0; f < F::kCount; ++f) {
        MTMAMBA_UNROLL
        for (int j = 0; j < 2; ++j) { // channels
            Two<T> const x0 = own.next[f][0].values(), x1 = own.next[f][1].values();
            float const u0 = toFloat(j ? x0.second : x0.first), u1 = toFloat(j ? x1.second : x1.first);
            float const d0 = DeviceMath::softplus(raw[f].value[0][j]), d1 = DeviceMath::softplus(raw[f].value[1][j]);
            float* const steps = memory.steps + (F::channel(f) + j) * MapShape<kLanes>::kStepPitch + 2 * F::token(f);
            *reinterpret_cast<float4*>(steps) = make_float4(d0, d0 * u0, d1, d1 * u1);
            float const skip = channels.skip[f / F::kDown][j];
            own.base[f].value[0][j] = withSkip ? skip * u0 : 0.F;
            own.base[f].value[1][j] = withSkip ? skip * u1 : 0.F;
        }
    }
}

} // namespace mtmamba

#endif // MTMAMBA_SIMT
