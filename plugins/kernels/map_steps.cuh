// The steps d = softplus(dt_weight . low + dt_bias) of a run of SelectiveScan2D, in units of ln 2.
#pragma once

#include "kernels/map_tile.cuh"

#ifdef MTMAMBA_SIMT

namespace mtmamba {

// What the tensor cores give a lane of 16 tokens and 8 channels: [token 2 quad + i][channel 2 inQuad + j].
struct Four {
    float value[2][2];
};

// To each fragment the bias of its channels. bias: of the team's first channel.
template <int kPer> MTMAMBA_DEVICE void startWithBias(float const* bias, Four* raw) {
    MTMAMBA_UNROLL
    for (int i = 0; i < kPer; ++i) {
        float2 const two = *reinterpret_cast<float2 const*>(bias + 8 * i + 2 * mapInQuad());
        raw[i] = {{{two.x, two.y}, {two.x, two.y}}};
    }
}

// Where the weight of a team's channel lies in shared memory, as the tensor cores want it: eight ranks of all channels
// together, r and r + 4 beside each other; two places on, its second part.
template <int kPer> MTMAMBA_DEVICE int weightIndex(int channel, int r) {
    return (r / 8 * kPer + channel / 8) * 128 + channel % 8 * 16 + r % 4 * 4 + r % 8 / 4;
}

// The step before softplus, from weights and features in shared memory: float32's accuracy from products of 11-bit
// numbers, each operand in two parts. Features of half precision are one part exactly. weights: of the team; low: of
// the run.
template <typename T, int kPer>
MTMAMBA_DEVICE void addLowRank(int columns, float const* weights, float const* low, Four* raw) {
    int const lane = static_cast<int>(threadIdx.x) % 32;
    weights += 4 * lane;
    low += 4 * lane;
    Four ofLost[kPer] = {};
#pragma unroll 1
    for (float const* const end = low + columns * kMapRun; low < end; low += 128, weights += kPer * 128) {
        float a[4], w[kPer][4];
        loadFour(low, a);
        MTMAMBA_UNROLL
        for (int i = 0; i < kPer; ++i) {
            loadFour(weights + i * 128, w[i]);
        }
        MTMAMBA_UNROLL
        for (int i = 0; i < kPer; ++i) {
            float const high[2] = {w[i][0], w[i][1]}, lost[2] = {w[i][2], w[i][3]};
            multiplyTf32(a, high, &raw[i].value[0][0]);
            multiplyTf32(a, lost, &ofLost[i].value[0][0]);
            if (sizeof(T) == sizeof(float)) {
                float const lostOfA[4] = {lostByTf32(a[0]), lostByTf32(a[1]), lostByTf32(a[2]), lostByTf32(a[3])};
                multiplyTf32(lostOfA, high, &ofLost[i].value[0][0]);
            }
        }
    }
    MTMAMBA_UNROLL
    for (int i = 0; i < kPer; ++i) {
        MTMAMBA_UNROLL
        for (int k = 0; k < 4; ++k) {
            raw[i].value[k / 2][k % 2] += ofLost[i].value[k / 2][k % 2];
        }
    }
}

// The same for any rank, of one token and channel from memory. weights: of the channel; low: of the run's first token.
MTMAMBA_APART float anyRank(float const* weights, float const* low, int token, int rank, int columns) {
    float sum = 0.F;
#pragma unroll 1
    for (int r = 0; r < rank; ++r) {
        sum += weights[r] *
               low[lowIndex(static_cast<uint32_t>(token), static_cast<uint32_t>(r), static_cast<uint32_t>(columns))];
    }
    return sum;
}
template <typename T, int kPer>
MTMAMBA_DEVICE void addAnyRank(MapLaunch<T> const& launch, MapPlace const& place, float const* low, Four* raw) {
    int const rank = static_cast<int>(launch.p.rank);
#pragma unroll 1
    for (int j = 0; j < 4; ++j) {
        int const token = 2 * mapQuad() + j / 2;
        MTMAMBA_UNROLL
        for (int i = 0; i < kPer; ++i) {
            int64_t const channel = place.row(launch.p) + place.within(8 * i + 2 * mapInQuad() + j % 2);
            float const sum = anyRank(launch.p.dtWeight + channel * rank, low, token, rank, launch.lowColumns);
            MTMAMBA_UNROLL
            for (int k = 0; k < 4; ++k) {
                raw[i].value[k / 2][k % 2] += k == j ? sum * kLog2E : 0.F;
            }
        }
    }
}

// d and d u of a run. x: of the run's first token.
template <typename T, int kPer> MTMAMBA_DEVICE void makeSteps(float* steps, T const* x, Four const* raw) {
    using S = MapShape<T, kPer>;
    int const token = 2 * mapQuad();
    x += token * S::kInputPitch + 2 * mapInQuad();
    MTMAMBA_UNROLL
    for (int k = 0; k < 2; ++k) { // rows of steps: of a fragment each, or a fragment's channels
        int const row = kPer == 2 ? 4 * k + mapInQuad() : 2 * mapInQuad() + k;
        float d[2 * kPer], high[2 * kPer], lost[2 * kPer];
        MTMAMBA_UNROLL
        for (int i = 0; i < 2 * kPer; ++i) {
            int const t = i / kPer, fragment = kPer == 2 ? k : 0, j = kPer == 2 ? i % 2 : k;
            Two<T> const two = *reinterpret_cast<Two<T> const*>(x + t * S::kInputPitch + 8 * fragment);
            d[i] = softplus2<T>(raw[fragment].value[t][j]);
            float const du = d[i] * toFloat(j ? two.second : two.first);
            high[i] = sizeof(T) == sizeof(float) ? roundedToTf32(du) : cutToTf32(du);
            lost[i] = du - high[i];
        }
        float* const to = steps + row * S::kStepPitch;
        saveTogether<2 * kPer>(to + token * kPer, d);
        saveTogether<2 * kPer>(to + S::kHigh + token * kPer, high);
        saveTogether<2 * kPer>(to + S::kLost + token * kPer, lost);
    }
}

// Prepares runs: the steps of a team's channels.
template <typename T, int kPer> class MapPreparer {
  public:
    MTMAMBA_DEVICE MapPreparer(MapLaunch<T> const& launch, MapPlace const& place, MapMemory<T, kPer>& memory)
        : mLaunch(launch), mPlace(place), mMemory(memory), mX(memory.x[0] + place.team * S::kChannels),
          mLow(memory.low(0, launch)) {}

    // Steps before softplus, of the run that begins with token `first`, `run` of the tile.
    MTMAMBA_DEVICE void project(int first, int run) {
        int const columns = mLaunch.lowColumns;
        startWithBias<kPer>(mMemory.teams[mPlace.team].bias, mRaw);
        if (mLaunch.staged()) {
            float const* const weights = mMemory.weights() + mPlace.team * S::kChannels * 2 * columns;
            addLowRank<T, kPer>(columns, weights, mLow + run * kMapRun * columns, mRaw);
        } else {
            float const* const low = mLaunch.low + (mPlace.scan() * mLaunch.pitch + first) * columns;
            addAnyRank<T, kPer>(mLaunch, mPlace, low, mRaw);
        }
    }
    // That run's d and d u.
    MTMAMBA_DEVICE void make(int run) {
        makeSteps<T, kPer>(mMemory.teams[mPlace.team].steps[run], mX + run * kMapRun * S::kInputPitch, mRaw);
    }
    MTMAMBA_DEVICE void nextTile() {
        constexpr int kTile = kMapTile * S::kInputPitch;
        T const* const all = mMemory.x[0] + mPlace.team * S::kChannels;
        mX = mX == all + (S::kInputs - 1) * kTile ? all : mX + kTile;
        float const* const first = mMemory.low(0, mLaunch);
        mLow = mLow == mMemory.low(S::kLows - 1, mLaunch) ? first : mLow + kMapTile * mLaunch.lowColumns;
    }

  private:
    using S = MapShape<T, kPer>;
    MapLaunch<T> const& mLaunch;
    MapPlace const& mPlace;
    MapMemory<T, kPer>& mMemory;
    T const* mX; // of the tile
    float const* mLow;
    Four mRaw[kPer];
};

} // namespace mtmamba

#endif // MTMAMBA_SIMT
