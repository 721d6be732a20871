// y of SelectiveScan2D to memory.
#pragma once

#include "kernels/map_tile.cuh"

#ifdef MTMAMBA_SIMT

namespace mtmamba {

// From h of steps in units of ln 2 to y. Cutting h to 11 bits makes it smaller by 0.36 units of the 11th bit on
// average.
template <typename T>
constexpr float kOutputScale = 0.693147181F * (sizeof(T) == sizeof(float) ? 1.F : 1.F + 0.72F / 2048);

// Finishes runs: y + D u + the sum so far, to memory. A lane has a token and eight channels, of the team, or of all of
// the block's one after another.
template <typename T, int kPer> class MapFinisher {
  public:
    // sums: the part's; fresh: nothing has been summed yet; direct: this makes y.
    MTMAMBA_DEVICE MapFinisher(MapLaunch<T> const& launch, MapPlace const& place, MapMemory<T, kPer>& memory, int fold,
                               float* sums, bool fresh, bool direct)
        : mLaunch(launch), mPlace(place), mMemory(memory), mSum(sums, launch, place), mFresh(fresh), mDirect(direct),
          mSkips(fold == 0 && place.direction == 0), mX(memory.x[0] + place.team * S::kChannels),
          mWalk(lane() / 2, kMapRun, place.direction, static_cast<int>(launch.p.height),
                static_cast<int>(launch.p.width)) {
        load(0);
    }

    // y of a run.
    MTMAMBA_DEVICE void read(int run) {
        float const* const steps = own().steps[run % 2] + S::kOutput + lane() / 2 * kPer;
        MTMAMBA_UNROLL
        for (int k = 0; k < 8 / kPer; ++k) {
            float const* const from = steps + (kPer == 2 ? lane() % 2 * 4 + k : k) * S::kStepPitch;
            if (kPer == 2) {
                loadSome<2>(from, mValues + 2 * k % kMapOwn);
            } else {
                mValues[k] = from[0] + from[kMapRun];
            }
        }
    }
    // That run, which begins with token `first`, to memory.
    MTMAMBA_DEVICE void finish(int first) {
        if (moves(first)) {
            MTMAMBA_UNROLL
            for (int i = 0; i < kMapOwn; ++i) {
                mValues[i] = fmaf(mValues[i], kOutputScale<T>, mSummed[i]);
            }
            if (mSkips) { // this adds D u
                float u[kMapOwn], skip[kMapOwn];
                loadTogether<kMapOwn>(mX + lane() / 2 * S::kInputPitch + lane() % 2 * kMapOwn, u);
                loadTogether<kMapOwn>(kPer == 2 ? own().skip + lane() % 2 * kMapOwn : own().skip, skip);
                MTMAMBA_UNROLL
                for (int i = 0; i < kMapOwn; ++i) {
                    mValues[i] = fmaf(skip[i], u[i], mValues[i]);
                }
            }
            if (mDirect) {
                Plane<T>(mLaunch.p.y, mLaunch, mPlace).save(mWalk.at, mValues);
            } else {
                mSum.save(mWalk.at, mValues);
            }
        }
        mWalk.step();
        constexpr int kRun = kMapRun * S::kInputPitch;
        T const* const all = mMemory.x[0] + mPlace.team * S::kChannels;
        mX = mX == all + (S::kInputs * kTileRuns - 1) * kRun ? all : mX + kRun;
        load(first + kMapRun);
    }

  private:
    using S = MapShape<T, kPer>;
    static MTMAMBA_DEVICE int lane() { return static_cast<int>(threadIdx.x) % 32; }
    MTMAMBA_DEVICE TeamMemory<T, kPer>& own() { return mMemory.teams[kPer == 2 ? mPlace.team : lane() % 2]; }
    MTMAMBA_DEVICE bool moves(int first) const { return mPlace.moves && first + lane() / 2 < mLaunch.length(); }
    MTMAMBA_DEVICE void load(int first) {
        if (!mFresh && moves(first)) {
            mSum.load(mWalk.at, mSummed);
        }
    }

    MapLaunch<T> const& mLaunch;
    MapPlace const& mPlace;
    MapMemory<T, kPer>& mMemory;
    Plane<float> const mSum;
    bool const mFresh, mDirect, mSkips;
    T const* mX; // of the next run to finish, the team's first channel
    PixelWalk mWalk;
    float mValues[kMapOwn], mSummed[kMapOwn] = {}; // of it: what has been summed
};

} // namespace mtmamba

#endif // MTMAMBA_SIMT
