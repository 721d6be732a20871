// What the scan of SelectiveScan2D works with: how a block's tile lies in shared memory, which of its tokens and
// channels a thread has, and how they come from memory and go back.
#pragma once

#include <cstring>
#include <type_traits>

#include "kernels/math.cuh"
#include "kernels/planes.cuh"

#ifdef __CUDACC__
#include <cuda_pipeline_primitives.h>
#endif

namespace mtmamba {

constexpr int kMapThreads = 128;
constexpr int kMapPitch = 64; // tokens: a multiple of every tile

// Contiguous tensors. T: float, __half or __nv_bfloat16. dtWeight, dtBias, A and D are float32 for every T.
template <typename T> struct SelectiveScan2DParams {
    T const* x;            // [B, G, D, H, W]
    T const* xDbl;         // [B, G, K, R+2N, H, W]
    float const* dtWeight; // [G, K, D, R]
    float const* dtBias;   // [G, K, D]
    float const* A;        // [G, K, D, N]
    float const* D;        // [G, K, D]
    T* y;                  // [B, G, H, W, D]
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

template <int kLanes> struct MapShape {
    static constexpr int kChannels = kMapThreads / kLanes;
    static constexpr int kStates = kFold / kLanes;
    static constexpr int kTile = kLanes == 16 ? 64 : 32;
    // In floats; so that the lanes of a warp meet different banks.
    static constexpr int kStepPitch = 2 * kTile + 4;                             // of a channel's (d, d u)
    static constexpr int kSharePitch = kTile + (kLanes == 16 ? 4 : 32 / kLanes); // of a lane's share of y
    static constexpr int kSharesPitch = kLanes * kSharePitch + 4;                // of a channel's shares
};

template <typename T> struct MapLaunch {
    SelectiveScan2DParams<T> p;
    T const* tokens;  // x, [B, G, L, D]
    Two<T> const* BC; // see OrderParams
    float const* low;
    float* sums[kMaxParts]; // of each part
    int64_t pitch;
    int64_t channelBlocks;
    int lowColumns;
    int parts;
    bool pairs; // channels may be read and written by twos
};

// Behind it, up to kStagedRank: the step's weights, in two parts, [2][kChannels][lowColumns], and two tiles of the low
// rank [2][kTile][lowColumns].
template <typename T, int kLanes> struct alignas(16) MapMemory {
    using S = MapShape<kLanes>;
    Two<T> BC[2][S::kTile * kFold];
    float steps[S::kChannels * S::kStepPitch];
    float shares[S::kChannels * S::kSharesPitch];
    int pixels[2][S::kTile]; // of the tile's tokens; 0 past the end

    MTMAMBA_DEVICE float* weights() { return reinterpret_cast<float*>(this + 1); }
    MTMAMBA_DEVICE float* low(int buffer, int lowColumns) {
        return weights() + (2 * S::kChannels + buffer * S::kTile) * lowColumns;
    }
    static size_t bytes(int lowColumns) {
        int const staged = lowColumns > kStagedRank + 4 ? 0 : 2 * (S::kChannels + S::kTile) * lowColumns;
        return sizeof(MapMemory) + static_cast<size_t>(staged) * sizeof(float);
    }
};

// A block's place: `channels` channels from `channel` on, of image b * G + g, in one direction.
struct MapPlace {
    int64_t image, group, channel;
    int channels, direction;

    MTMAMBA_DEVICE int within(int lane) const { return lane < channels ? lane : channels - 1; }
    template <typename T> MTMAMBA_DEVICE int64_t row(SelectiveScan2DParams<T> const& p) const { // of the parameters
        return (group * kDirections + direction) * p.channels + channel;
    }
};

// What a thread makes steps and outputs of: kCount fragments of two consecutive tokens of two consecutive channels, as
// the product of 16 tokens and 8 channels on the tensor cores gives them (its rows g and g + 8: tokens 2g and 2g + 1).
template <int kLanes> struct Fragments {
    using S = MapShape<kLanes>;
    static constexpr int kDown = S::kTile / 16;
    static constexpr int kCount = kDown * S::kChannels / 8 / (kMapThreads / 32);

    static MTMAMBA_DEVICE int index(int f) { return static_cast<int>(threadIdx.x) / 32 * kCount + f; }
    static MTMAMBA_DEVICE int quad() { return static_cast<int>(threadIdx.x) % 32 / 4; }
    static MTMAMBA_DEVICE int inQuad() { return static_cast<int>(threadIdx.x) % 4; }
    static MTMAMBA_DEVICE int token(int f) { return index(f) % kDown * 16 + 2 * quad(); }
    static MTMAMBA_DEVICE int channel(int f) { return index(f) / kDown * 8 + 2 * inQuad(); }
};

// The bits of a Two. A value of less than 32 bits that waits in a register is taken apart when it is used: not when it
// is loaded, which would wait for the memory.
template <typename T> struct Packed {
    using Bits = typename std::conditional<sizeof(T) == sizeof(float), uint2, uint32_t>::type;
    Bits bits;

    MTMAMBA_DEVICE Packed() : bits() {}
    MTMAMBA_DEVICE explicit Packed(Two<T> const& two) { memcpy(&bits, &two, sizeof bits); }
    MTMAMBA_DEVICE Two<T> values() const {
        Two<T> two;
        memcpy(static_cast<void*>(&two), &bits, sizeof two);
        return two;
    }
};

// The values of a fragment: [token][channel].
struct Four {
    float value[2][2];
};

template <typename T, int kLanes> struct MapOwn {
    static constexpr int kCount = Fragments<kLanes>::kCount;
    Packed<T> next[kCount][2]; // x of the next tile: of both channels, of a token
    Four base[kCount];         // D u
};

// The value at a pixel, `base` being pixel 0's of the same channel. pixelBytes: from one pixel to the next. A single
// multiplication of 32 by 32 bits, added to the address.
template <typename T> MTMAMBA_DEVICE T* atPixel(T* base, int pixel, uint32_t pixelBytes) {
    using Byte = typename std::conditional<std::is_const<T>::value, char const, char>::type;
    return reinterpret_cast<T*>(reinterpret_cast<Byte*>(base) +
                                static_cast<uint64_t>(static_cast<uint32_t>(pixel)) * pixelBytes);
}

// One image's block of channels in a tensor [.., L, D], read and written by twos of channels.
template <typename T> struct Plane {
    T* at; // the block's first channel, pixel 0
    uint32_t pixelBytes;
    int channels;
    bool pairs;

    template <typename P>
    MTMAMBA_DEVICE Plane(T* tensor, P const& launch, MapPlace const& place)
        : at(tensor + place.image * launch.p.height * launch.p.width * launch.p.channels + place.channel),
          pixelBytes(static_cast<uint32_t>(launch.p.channels * static_cast<int64_t>(sizeof(T)))),
          channels(place.channels), pairs(launch.pairs) {}

    // Channels past the last are the last.
    MTMAMBA_DEVICE Packed<typename std::remove_const<T>::type> load(int pixel, int channel) const {
        using Value = Packed<typename std::remove_const<T>::type>;
        T* const from = atPixel(at, pixel, pixelBytes);
        if (pairs) {
            Value two;
            two.bits =
                *reinterpret_cast<typename Value::Bits const*>(from + (channel < channels ? channel : channels - 2));
            return two;
        }
        int const last = channels - 1;
        return Value({from[channel < last ? channel : last], from[channel + 1 < last ? channel + 1 : last]});
    }
    MTMAMBA_DEVICE void save(int pixel, int channel, float first, float second) const {
        T* const to = atPixel(at, pixel, pixelBytes) + channel;
        if (pairs && channel < channels) {
            Two<T> two;
            store(&two.first, first);
            store(&two.second, second);
            *reinterpret_cast<Two<T>*>(to) = two;
        } else if (channel < channels) {
            store(to, first);
            if (channel + 1 < channels) {
                store(to + 1, second);
            }
        }
    }
};

// Where the thread's token of each tile lies. (h, w) of the direction's own order, row by row or column by column: the
// reversed orders visit the opposite pixel.
struct PixelWalk {
    int inner, outer, across; // along the order, across it; the order's length along

    // The thread's first token; `height` and `width` of the map.
    MTMAMBA_DEVICE PixelWalk(int token, int direction, int height, int width)
        : inner(0), outer(0), across(direction % 2 ? height : width) {
        step(token);
    }
    MTMAMBA_DEVICE void step(int tokens) {
        inner += tokens;
        while (inner >= across) {
            inner -= across;
            ++outer;
        }
    }
    MTMAMBA_DEVICE int pixel(int direction, int height, int width) const {
        int const forward = direction % 2 ? inner * width + outer : outer * width + inner;
        return direction >= 2 ? height * width - 1 - forward : forward;
    }
};

// Copies between two addresses that are multiples of 16 bytes; so is the size.
MTMAMBA_DEVICE void copyAsync(float* target, float const* source, int floats) {
#pragma unroll 1
    for (int i = 4 * static_cast<int>(threadIdx.x); i < floats; i += 4 * kMapThreads) {
        __pipeline_memcpy_async(target + i, source + i, 16);
    }
}

// Starts the copies of a tile's features, and says where its tokens lie.
template <typename T, int kLanes>
MTMAMBA_DEVICE void startTile(MapLaunch<T> const& launch, MapPlace const& place, MapMemory<T, kLanes>& memory,
                              Two<T> const* BC, float const* low, int first, int buffer, PixelWalk& walk) {
    using S = MapShape<kLanes>;
    int const thread = static_cast<int>(threadIdx.x), length = static_cast<int>(launch.p.height * launch.p.width);
    constexpr int kEach = 16 / static_cast<int>(sizeof(Two<T>)), kStep = kEach * kMapThreads; // in Twos
    static_assert(S::kTile * kFold % kStep == 0, "every thread copies as much");
    Two<T>* const target = memory.BC[buffer] + kEach * thread;
    Two<T> const* const source = BC + static_cast<int64_t>(first) * kFold + kEach * thread;
    MTMAMBA_UNROLL
    for (int i = 0; i < S::kTile * kFold; i += kStep) {
        __pipeline_memcpy_async(target + i, source + i, 16);
    }
    if (launch.lowColumns <= kStagedRank + 4) {
        copyAsync(memory.low(buffer, launch.lowColumns), low + static_cast<int64_t>(first) * launch.lowColumns,
                  S::kTile * launch.lowColumns);
    }
    __pipeline_commit();
    if (thread < S::kTile) {
        int const height = static_cast<int>(launch.p.height), width = static_cast<int>(launch.p.width);
        memory.pixels[buffer][thread] = first + thread < length ? walk.pixel(place.direction, height, width) : 0;
        walk.step(S::kTile);
    }
}

// x of the thread's fragments, to own.next.
template <typename T, int kLanes>
MTMAMBA_DEVICE void loadInputs(Plane<T const> const& x, int const* pixels, MapOwn<T, kLanes>& own) {
    using F = Fragments<kLanes>;
    MTMAMBA_UNROLL
    for (int f = 0; f < F::kCount; ++f) {
        int2 const two = *reinterpret_cast<int2 const*>(pixels + F::token(f));
        own.next[f][0] = x.load(two.x, F::channel(f));
        own.next[f][1] = x.load(two.y, F::channel(f));
    }
}

#endif // MTMAMBA_SIMT

} // namespace mtmamba
