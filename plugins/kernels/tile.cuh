// The selective scan of one tile: what both operators' kernels share.
//
// A lane is a channel, a warp is a piece of time. A block holds kChannels channels and kSegments segments of kTokens
// consecutive tokens, a thread one segment of one channel. For each state n a thread
//   1. evaluates the decays and inputs of its tokens (kept in registers), and the state they lead to from zero;
//   2. hands (decay of the whole segment, that state) to the later segments of its channel through shared memory;
//   3. folds the segments before it onto the carry of the tile before: the true state its segment starts from;
//   4. runs its tokens again from there, without a new exponential, and adds C h to y.
// So the length is split over threads at one exponential per state and token, B and C are read as broadcasts, nothing
// crosses channels (a NaN stays in its channel), and any number of states runs through the same registers.
#pragma once

#include <cstring>

#include "kernels/math.cuh"

#ifdef MTMAMBA_SIMT

namespace mtmamba {

constexpr int kThreads = 128;
constexpr int kBlocksPerSM = 3; // by registers: at most 65536 / (3 * 128) a thread
constexpr int kTokens = 16;     // of a segment
constexpr int kStateRows = 16;  // states whose B and C are in shared memory at once
constexpr int kRows = 2 * kStateRows;
constexpr int kSegmentPitch = kTokens + 4; // segments that a warp reads together lie in different banks

template <int kChannels> struct Shape {
    static constexpr int kSegments = kThreads / kChannels;
    static constexpr int kTile = kSegments * kTokens;
    static constexpr int kRowPitch = kSegments * kSegmentPitch;

    // Where token i of a tile stands in a row.
    static MTMAMBA_DEVICE int at(int token) { return token / kTokens * kSegmentPitch + token % kTokens; }
};

// Shared memory that every kernel starts with. (A times log2(e), carry) of every state follow it.
template <int kChannels> struct TileMemory {
    static constexpr int kSlots = kThreads;

    float rows[kRows * Shape<kChannels>::kRowPitch]; // features of the tile's tokens: B, then C
    float2 slots[2][kSlots];                         // (decay, state from zero) of [segment][channel], by turns

    static constexpr size_t bytes(int64_t states) {
        return sizeof(TileMemory) + static_cast<size_t>(states * kChannels) * sizeof(float2);
    }
    MTMAMBA_DEVICE float2* states() { return reinterpret_cast<float2*>(this + 1); } // [N][channel]
};

// What a thread knows of its tokens. Those past the end may hold anything: no token before them sees them.
struct Segment {
    float step[kTokens];  // d
    float input[kTokens]; // d u
    float y[kTokens];
};

// A and a zero carry for all states of the block's channels; lanes past the last take its A. A: of the first channel,
// [channels][N].
template <int kChannels>
MTMAMBA_DEVICE void startStates(TileMemory<kChannels>& memory, float const* A, int channels, int states) {
    for (int i = static_cast<int>(threadIdx.x); i < states * kChannels; i += kThreads) {
        int const n = i / kChannels, c = i % kChannels;
        int64_t const own = static_cast<int64_t>(c < channels ? c : channels - 1) * states + n;
        memory.states()[i] = make_float2(A[own] * kLog2E, 0.F);
    }
}

// Sixteen bytes of T as floats, to shared memory aligned to 16 bytes.
template <typename T> MTMAMBA_DEVICE void storeVector(uint4 raw, float* target) {
    constexpr int kVector = 16 / static_cast<int>(sizeof(T));
    T values[kVector];
    memcpy(static_cast<void*>(values), &raw, sizeof raw);
    MTMAMBA_UNROLL
    for (int j = 0; j < kVector; j += 4) {
        *reinterpret_cast<float4*>(target + j) =
            make_float4(toFloat(values[j]), toFloat(values[j + 1]), toFloat(values[j + 2]), toFloat(values[j + 3]));
    }
}

// `count` rows of a tile to shared memory, sixteen bytes at a time: token i of row r lies at source[r * length + i], of
// which the first `tokens` exist; the others become 0. source, length and tokens are multiples of 16 bytes.
template <int kChannels, int kPitch = Shape<kChannels>::kRowPitch, typename T>
MTMAMBA_DEVICE void stageVectors(T const* source, int64_t length, int64_t tokens, int count, float* rows) {
    using S = Shape<kChannels>;
    constexpr int kVector = 16 / static_cast<int>(sizeof(T)), kVectors = S::kTile / kVector;
    constexpr int kStep = kThreads / kVectors; // rows that the block moves at once
    static_assert(kThreads % kVectors == 0, "a thread stays in its column");
    int const thread = static_cast<int>(threadIdx.x), token = thread % kVectors * kVector, row = thread / kVectors;
    T const* from = source + row * length + token;
    float* to = rows + row * kPitch + S::at(token);
    bool const exists = token < tokens;
#pragma unroll 4
    for (int r = row; r < count; r += kStep) {
        uint4 const zeros = make_uint4(0, 0, 0, 0); // of every type
        storeVector<T>(exists ? __ldg(reinterpret_cast<uint4 const*>(from)) : zeros, to);
        from += kStep * length;
        to += kStep * kPitch;
    }
}

// The same for any address and length.
template <int kChannels, int kPitch = Shape<kChannels>::kRowPitch, typename T>
MTMAMBA_DEVICE void stageScalars(T const* source, int64_t length, int64_t tokens, int count, float* rows) {
    using S = Shape<kChannels>;
    for (int i = static_cast<int>(threadIdx.x); i < count * S::kTile; i += kThreads) {
        int const row = i / S::kTile, token = i % S::kTile;
        rows[row * kPitch + S::at(token)] = token < tokens ? toFloat(source[row * length + token]) : 0.F;
    }
}

// Steps 1 to 4 for states [first, first + count), whose B and C stand in memory.rows. The block must have a barrier
// between the writing of memory and this, and one between two calls.
template <int kChannels>
MTMAMBA_DEVICE void scanStates(TileMemory<kChannels>& memory, Segment& own, int first, int count) {
    using S = Shape<kChannels>;
    constexpr int kOfWarp = 32 / kChannels; // segments that a warp holds
    int const thread = static_cast<int>(threadIdx.x), channel = thread % kChannels, segment = thread / kChannels;
    int const uniform = thread / 32 * kOfWarp; // segments before this warp's own: the same for all its lanes
    float const* row = memory.rows + segment * kSegmentPitch;
    float2* state = memory.states() + first * kChannels + channel;
    int phase = 0;
    float total = 0.F;
    MTMAMBA_UNROLL
    for (int i = 0; i < kTokens; ++i) {
        total += own.step[i];
    }
#pragma unroll 2 // so that the slots' addresses are constants
    for (int n = 0; n < count; ++n) {
        float const A = state->x, carry = state->y; // the carry is read before the barrier and written after it
        Step<DeviceMath> steps[kTokens];
        float h = 0.F;
        MTMAMBA_UNROLL
        for (int i = 0; i < kTokens; i += 4) {
            float B[4];
            loadFour(row + i, B);
            MTMAMBA_UNROLL
            for (int j = 0; j < 4; ++j) {
                steps[i + j] = stepOf<DeviceMath>(own.step[i + j] * A, own.input[i + j], B[j]);
                h = i + j == 0 ? steps[0].added : steps[i + j](h);
            }
        }
        float2* const slots = memory.slots[phase] + channel;
        slots[segment * kChannels] = make_float2(DeviceMath::decay(total * A), h);
        __syncthreads();
        h = carry;
#pragma unroll 1
        for (int s = 0; s < uniform; s += kOfWarp) {
            MTMAMBA_UNROLL
            for (int j = 0; j < kOfWarp; ++j) {
                float2 const before = slots[(s + j) * kChannels];
                h = before.x * h + before.y;
            }
        }
        MTMAMBA_UNROLL
        for (int j = 0; j < kOfWarp - 1; ++j) {
            if (uniform + j < segment) {
                float2 const before = slots[(uniform + j) * kChannels];
                h = before.x * h + before.y;
            }
        }
        MTMAMBA_UNROLL
        for (int i = 0; i < kTokens; i += 4) {
            float C[4];
            loadFour(row + kStateRows * S::kRowPitch + i, C);
            MTMAMBA_UNROLL
            for (int j = 0; j < 4; ++j) {
                advance<DeviceMath>(h, own.y[i + j], steps[i + j], C[j]);
            }
        }
        if (segment == S::kSegments - 1) {
            state->y = h;
        }
        phase ^= 1;
        row += S::kRowPitch;
        state += kChannels;
    }
}

} // namespace mtmamba

#endif // MTMAMBA_SIMT
