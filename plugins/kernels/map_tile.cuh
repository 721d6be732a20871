// What the scan of SelectiveScan2D works with: how a block's tile lies in shared memory, which of its scans, tokens and
// channels a thread has.
#pragma once

#include <cstring>
#include <type_traits>

#include "kernels/math.cuh"
#include "kernels/planes.cuh"

namespace mtmamba {

constexpr int kTileRuns = kMapTile / kMapRun;
constexpr int kMapAhead = 2;  // tiles whose copies are under way
constexpr int kMapPitch = 32; // tokens: a multiple of the tile
constexpr int kMapOwn = 8;    // channels of a token that a lane finishes

// Contiguous tensors. T: float, __half or __nv_bfloat16. dtWeight, dtBias, A and D are float32 for every T.
template <typename T> struct SelectiveScan2DParams {
    T const* x;            // [B, G, D, H, W]
    T const* xDbl;         // [B, G, K, R+2N, H, W]
    float const* dtWeight; // [G, K, D, R]
    float const* dtBias;   // [G, K, D]
    float const* A;        // [G, K, D, N]
    float const* D;        // [G, K, D]
    T* y;                  // [B, G, H, W, D], aligned to 16 bytes
    void* workspace;       // workspaceBytes<T>() of them, aligned to 16 bytes
    int64_t batch;
    int64_t groups;
    int64_t channels;
    int64_t height;
    int64_t width;
    int64_t rank;
    int64_t states; // 1..kMaxStates
};

#ifdef MTMAMBA_SIMT

constexpr int kStagedRank = 64; // the step's weights are in shared memory up to this rank

// A team of warps has 8 kPer channels; in row c / kPer of what follows is channel c. For 16 channels one warp scans,
// and one prepares and finishes. For 8, two share the states, two prepare every second run each, and of a block's two
// teams one warp finishes and one copies. Pitches in elements, so that the lanes of a warp meet different banks.
template <typename T, int kPer> struct MapShape {
    static constexpr int kTeams = kPer == 2 ? 4 : 2; // of a block
    static constexpr int kShare = kPer == 2 ? 1 : 2; // warps of a team that scan, and that prepare
    static constexpr bool kHelpers = kPer == 1;      // warps of their own finish and copy
    static constexpr int kThreads = 64 * kShare * kTeams + (kHelpers ? 64 : 0);
    static constexpr int kChannels = 8 * kPer;
    static constexpr int kInputPitch = kTeams * kChannels + 16 / static_cast<int>(sizeof(T));
    // Of a row: d, then d u in two parts of 11 bits, each [kMapRun][kPer]. y comes in the place of d, or for two warps
    // that scan behind, one's after the other's.
    static constexpr int kHigh = kMapRun * kPer, kLost = 2 * kHigh, kOutput = kShare == 1 ? 0 : 3 * kHigh;
    static constexpr int kStepPitch = (kShare == 1 ? 3 : 5) * kHigh + 4;
    // Tiles in shared memory: with those that come, that which is scanned and the one before of B and C, one less of
    // the low rank, and of x another one, whose y is finished.
    static constexpr int kLows = kMapAhead + 1, kPlanes = kMapAhead + kShare, kInputs = kMapAhead + 1 + kShare;
};

template <typename T> struct MapLaunch {
    SelectiveScan2DParams<T> p;
    T const* tokens; // x, [B, G, L, channelPitch]
    float const* BC; // see OrderParams
    float const* low;
    float* sums[kMaxParts]; // of each part, [B, G, L, channelPitch]
    int64_t pitch;
    int64_t channelPitch; // D up to a multiple of kChannelPitch
    int64_t channelBlocks;
    int lowColumns; // see lowIndex
    int scanCount;  // images * channelBlocks * kDirections
    int scans;      // of a block: MapPlan::scans
    bool direct;    // where a block has all of an image's four orders, it writes y

    MTMAMBA_HOST_DEVICE bool staged() const { return lowColumns <= kStagedRank; }
    MTMAMBA_HOST_DEVICE int length() const { return static_cast<int>(p.height * p.width); }
};

// What a team has for itself.
template <typename T, int kPer> struct alignas(16) TeamMemory {
    using S = MapShape<T, kPer>;
    float steps[2][8 * S::kStepPitch]; // of a run
    float skip[S::kChannels], bias[S::kChannels];
};

// A block's. Behind it, up to kStagedRank: the step's weights in two parts, of every team as weightIndex says, and
// tiles of the low rank.
template <typename T, int kPer> struct alignas(16) MapMemory {
    using S = MapShape<T, kPer>;
    static constexpr int kChannels = S::kTeams * S::kChannels;
    float zeros[(kMapRun + 2) * kFold];
    float B[S::kPlanes][kMapTile * kFold], C[S::kPlanes][kMapTile * kFold]; // [token][state], see featureOf
    T x[S::kInputs][kMapTile * S::kInputPitch];                             // [token][channel]
    TeamMemory<T, kPer> teams[S::kTeams];

    MTMAMBA_DEVICE float* weights() { return reinterpret_cast<float*>(this + 1); }
    MTMAMBA_DEVICE float* low(int buffer, MapLaunch<T> const& launch) {
        return weights() + (2 * kChannels + buffer * kMapTile) * launch.lowColumns;
    }
    static size_t bytes(MapLaunch<T> const& launch) {
        int const staged = (2 * kChannels + S::kLows * kMapTile) * launch.lowColumns;
        return sizeof(MapMemory) + (launch.staged() ? static_cast<size_t>(staged) * sizeof(float) : 0);
    }
};

// A block's scans: launch.scans of them, one after another, in the order of image, channels, direction. Those of the
// same channels add to the same sum.
template <typename T> struct MapTurn {
    MapLaunch<T> const& launch;
    int at;

    MTMAMBA_DEVICE explicit MapTurn(MapLaunch<T> const& l) : launch(l), at(first()) {}
    MTMAMBA_DEVICE int first() const { return static_cast<int>(blockIdx.x) * launch.scans; }
    MTMAMBA_DEVICE bool more() const { return at < first() + launch.scans && at < launch.scanCount; }
    MTMAMBA_DEVICE void step() { ++at; }
    MTMAMBA_DEVICE int unit() const { return at / kDirections; }
    MTMAMBA_DEVICE int direction() const { return at % kDirections; }
    MTMAMBA_DEVICE bool isFirst() const { return at == first() || direction() == 0; } // of a sum
    MTMAMBA_DEVICE bool isLast() const { return at + 1 == first() + launch.scans || direction() + 1 == kDirections; }
    MTMAMBA_DEVICE bool isWhole() const { return partsOf(unit(), launch.scans) == 1; }
    MTMAMBA_DEVICE int part() const { return static_cast<int>(blockIdx.x) - unit() * kDirections / launch.scans; }
};

// A team's place: `channels` channels (0: none) from `channel` on, of image b * G + g, in one direction. moves: whether
// the lane has channels to move.
struct MapPlace {
    int image, group, channel;
    int channels, direction, team;
    bool moves;

    MTMAMBA_DEVICE int64_t scan() const { return static_cast<int64_t>(image) * kDirections + direction; }
    MTMAMBA_DEVICE int within(int lane) const { return lane < channels ? lane : channels - 1; }
    template <typename T> MTMAMBA_DEVICE int64_t row(SelectiveScan2DParams<T> const& p) const { // of the parameters
        return (static_cast<int64_t>(group) * kDirections + direction) * p.channels + channel;
    }
};

template <typename T, int kPer>
MTMAMBA_DEVICE MapPlace placeOf(MapLaunch<T> const& launch, MapTurn<T> const& turn, int team) {
    using S = MapShape<T, kPer>;
    int const unit = turn.unit(), channelBlocks = static_cast<int>(launch.channelBlocks);
    MapPlace place{};
    place.team = team;
    place.direction = turn.direction();
    place.image = unit / channelBlocks;
    place.group = place.image % static_cast<int>(launch.p.groups);
    place.channel = (unit % channelBlocks * S::kTeams + team) * S::kChannels;
    int const left = static_cast<int>(launch.p.channels) - place.channel;
    place.channels = left < 0 ? 0 : left < S::kChannels ? left : S::kChannels;
    place.moves = static_cast<int>(threadIdx.x) % 2 * kMapOwn < left;
    return place;
}

// A lane's place in the fragments of the tensor cores: 4 quad + inQuad.
MTMAMBA_DEVICE int mapQuad() { return static_cast<int>(threadIdx.x) % 32 / 4; }
MTMAMBA_DEVICE int mapInQuad() { return static_cast<int>(threadIdx.x) % 4; }

// The value at a pixel, `base` being pixel 0's of the same channel. pixelBytes: from one pixel to the next. A single
// multiplication of 32 by 32 bits, added to the address.
template <typename T> MTMAMBA_DEVICE T* atPixel(T* base, int pixel, uint32_t pixelBytes) {
    using Byte = typename std::conditional<std::is_const<T>::value, char const, char>::type;
    return reinterpret_cast<T*>(reinterpret_cast<Byte*>(base) +
                                static_cast<uint64_t>(static_cast<uint32_t>(pixel)) * pixelBytes);
}

// The kMapOwn channels that a lane finishes of one image's tensor [.., L, channelPitch]: lanes 2t and 2t + 1 have token
// t of a run.
template <typename T> struct Plane {
    T* at; // the lane's first channel, pixel 0
    uint32_t pixelBytes;

    template <typename P>
    MTMAMBA_DEVICE Plane(T* tensor, P const& launch, MapPlace const& place)
        : at(tensor + place.image * launch.p.height * launch.p.width * launch.channelPitch + place.channel +
             static_cast<int>(threadIdx.x) % 2 * kMapOwn),
          pixelBytes(static_cast<uint32_t>(launch.channelPitch * static_cast<int64_t>(sizeof(T)))) {}

    MTMAMBA_DEVICE void load(int pixel, float* values) const {
        loadTogether<kMapOwn>(atPixel(at, pixel, pixelBytes), values);
    }
    MTMAMBA_DEVICE void save(int pixel, float const* values) const {
        saveTogether<kMapOwn>(atPixel(at, pixel, pixelBytes), values);
    }
};

// The pixel of every stride-th token. The reversed orders visit the opposite pixel.
struct PixelWalk {
    int at;            // the pixel
    int inner, across; // the place in a row or column, and its length
    int stride;        // tokens of a step
    int ahead, wrap;   // pixels of a step; and at the end of a row or column

    // Token `token` first; `height` and `width` of the map.
    MTMAMBA_DEVICE PixelWalk(int token, int stride, int direction, int height, int width)
        : at(direction >= 2 ? height * width - 1 : 0), inner(0), across(direction % 2 ? height : width),
          stride(stride) {
        int const sign = direction >= 2 ? -1 : 1, along = sign * (direction % 2 ? width : 1);
        ahead = stride * along;
        wrap = sign * (direction % 2 ? 1 : width) - across * along;
        advance(token, token * along);
    }
    MTMAMBA_DEVICE void step() { advance(stride, ahead); }

  private:
    MTMAMBA_DEVICE void advance(int tokens, int pixels) {
        inner += tokens;
        at += pixels;
        while (inner >= across) {
            inner -= across;
            at += wrap;
        }
    }
};

// All threads of a block, from wherever in the program.
template <int kThreads> MTMAMBA_DEVICE void meetBlock() {
#ifdef __CUDA_ARCH__
    asm volatile("barrier.sync 1, %0;" ::"n"(kThreads) : "memory");
#elif !defined(__CUDACC__)
    __syncthreads();
#endif
}

#endif // MTMAMBA_SIMT

} // namespace mtmamba
