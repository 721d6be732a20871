// How the tiles of SelectiveScan2D come to shared memory: asynchronous copies, kMapAhead tiles ahead.
#pragma once

#include "kernels/map_tile.cuh"

#ifdef MTMAMBA_SIMT

#ifdef __CUDACC__
#include <cuda_pipeline_primitives.h>
#endif

namespace mtmamba {

// The copies of tile after tile, by kWarps warps of a block: features, and x of all its channels. Pieces of 16 bytes.
template <typename T, int kPer> class TileCopies {
  public:
    MTMAMBA_DEVICE TileCopies(MapLaunch<T> const& launch, MapPlace const& place, int fold)
        : mTile(0), mLength(launch.length()),
          mWalk(token(), kMapTile, place.direction, static_cast<int>(launch.p.height),
                static_cast<int>(launch.p.width)) {
        int const channel = place.channel - place.team * S::kChannels + lane() % kPieces * kPiece;
        mBC = launch.BC + (place.scan() * foldsOf(launch.p.states) + fold) * launch.pitch * (2 * kFold) + 4 * thread();
        mLow = launch.low + place.scan() * launch.pitch * launch.lowColumns + 4 * thread();
        mX = launch.tokens + place.image * static_cast<int64_t>(mLength) * launch.channelPitch + channel;
        mMoves = channel < launch.channelPitch;
    }

    // Starts those of the next tile, none past the end.
    MTMAMBA_DEVICE void start(MapLaunch<T> const& launch, MapMemory<T, kPer>& memory) {
        if (mTile * kMapTile < mLength) {
            startFeatures(launch, memory);
            startInputs(launch, memory.x[mTile % S::kInputs]);
        }
        ++mTile;
        __pipeline_commit();
    }

  private:
    MTMAMBA_DEVICE void startFeatures(MapLaunch<T> const& launch, MapMemory<T, kPer>& memory) {
        constexpr int kRow = 2 * kFold; // floats
        int const column = 4 * thread() % kRow, buffer = mTile % S::kPlanes;
        float* const to =
            (column < kFold ? memory.B[buffer] : memory.C[buffer]) + 4 * thread() / kRow * kFold + column % kFold;
        MTMAMBA_UNROLL
        for (int i = 0; i < kMapTile * kRow; i += 4 * kThreads) {
            __pipeline_memcpy_async(to + i / 2, mBC + i, 16);
        }
        mBC += kMapTile * kRow;
        if (launch.staged()) {
            int const floats = kMapTile * launch.lowColumns, left = floats - 4 * thread();
            float* const low = memory.low(mTile % S::kLows, launch) + 4 * thread();
            MTMAMBA_UNROLL
            for (int i = 0; i < kMapTile * kStagedRank; i += 4 * kThreads) {
                if (i < left) {
                    __pipeline_memcpy_async(low + i, mLow + i, 16);
                }
            }
            mLow += floats;
        }
    }
    MTMAMBA_DEVICE void startInputs(MapLaunch<T> const& launch, T* x) {
        auto const pixelBytes = static_cast<uint32_t>(launch.channelPitch * static_cast<int64_t>(sizeof(T)));
        int const pixel = mTile * kMapTile + token() < mLength ? mWalk.at : 0;
        x += lane() % kPieces * kPiece;
        MTMAMBA_UNROLL
        for (int i = 0; i < kTokens; i += 32 / kPieces) {
            int const t = i + lane() / kPieces, from = __shfl_sync(0xffffffffU, pixel, t);
            if (mMoves) {
                __pipeline_memcpy_async(x + (firstToken() + t) * S::kInputPitch, atPixel(mX, from, pixelBytes), 16);
            }
        }
        mWalk.step();
    }

    using S = MapShape<T, kPer>;
    static constexpr int kWarps = S::kHelpers ? 1 : S::kTeams, kThreads = 32 * kWarps;
    static constexpr int kTokens = kMapTile / kWarps;                      // of a warp
    static constexpr int kPiece = 16 / static_cast<int>(sizeof(T));        // values
    static constexpr int kPieces = MapMemory<T, kPer>::kChannels / kPiece; // of a token
    static MTMAMBA_DEVICE int lane() { return static_cast<int>(threadIdx.x) % 32; }
    static MTMAMBA_DEVICE int thread() { return static_cast<int>(threadIdx.x) % kThreads; }
    static MTMAMBA_DEVICE int firstToken() { return thread() / 32 * kTokens; }    // of the warp
    static MTMAMBA_DEVICE int token() { return firstToken() + lane() % kTokens; } // whose pixel the lane knows
    int mTile, mLength;
    PixelWalk mWalk;
    float const *mBC, *mLow;
    T const* mX;
    bool mMoves;
};

// The barriers of the turns, and the copies, of the warps that copy.
template <typename T, int kPer> class RunCopies {
  public:
    MTMAMBA_DEVICE RunCopies(MapLaunch<T> const& launch, MapPlace const& place, MapMemory<T, kPer>& memory, int fold)
        : mLaunch(launch), mMemory(memory), mTiles(launch, place, fold) {
        static_assert(kTileRuns == 2 && kMapAhead == 2, "turns of the copies");
        mTiles.start(mLaunch, mMemory);
        mTiles.start(mLaunch, mMemory);
    }
    // Until all are in the turn of a tile's run `run`.
    MTMAMBA_DEVICE void meet(int run) {
        using S = MapShape<T, kPer>;
        if (run == 0) {
            __pipeline_wait_prior(kMapAhead - 1);
        }
        meetBlock<S::kThreads>();
        if (run == S::kShare % kTileRuns) { // a tile has been scanned
            mTiles.start(mLaunch, mMemory);
        }
    }

  private:
    MapLaunch<T> const& mLaunch;
    MapMemory<T, kPer>& mMemory;
    TileCopies<T, kPer> mTiles;
};

} // namespace mtmamba

#endif // MTMAMBA_SIMT
