// The selective scan of Mamba.
//
// Shapes: B batch, D channels, L length, G groups, N states.
//   d_t = softplus(delta_t + delta_bias)          (or delta_t + delta_bias where deltaSoftplus is off)
//   h_t = exp(d_t A) h_{t-1} + d_t B_t u_t,  h_{-1} = 0
//   y_t = C_t . h_t + D u_t                       (channel c uses B and C of group c / (D / G))
// State and discretisation are float32 whatever the tensors are. How a tile is scanned: kernels/tile.cuh.
#pragma once

#include "kernels/planes.cuh"
#include "kernels/tile.cuh"

namespace mtmamba {

// Contiguous tensors. T: float, __half or __nv_bfloat16. A, D and deltaBias are float32 for every T.
template <typename T> struct SelectiveScanParams {
    T const* u;             // [B, D, L]
    T const* delta;         // [B, D, L]
    float const* A;         // [D, N]
    T const* B;             // [B, G, N, L]
    T const* C;             // [B, G, N, L]
    float const* D;         // [D]
    float const* deltaBias; // [D]
    T* y;                   // [B, D, L]
    int64_t batch;
    int64_t channels; // a multiple of groups
    int64_t groups;
    int64_t states; // 1..kMaxStates
    int64_t length;
    bool deltaSoftplus;
};

// Channels of a block, for these sizes: as many as still give a large GPU enough blocks, and no more than a group has.
inline int scanBlockChannels(int64_t batch, int64_t channels, int64_t groups) {
    constexpr int64_t kEnough = 384; // blocks: three for each of 128 multiprocessors
    int64_t const ofGroup = groups > 0 ? channels / groups : 0;
    for (int width : {32, 16}) {
        if (ofGroup > width / 2 && batch * groups * ((ofGroup + width - 1) / width) >= kEnough) {
            return width;
        }
    }
    return 8;
}

#ifdef MTMAMBA_SIMT

template <typename T> struct ScanLaunch {
    SelectiveScanParams<T> p;
    int64_t groupBlocks; // blocks of a group
    bool vectors;        // rows start on multiples of 16 bytes
};

template <int kChannels> struct alignas(16) ScanMemory {
    static constexpr int kPitch = Shape<kChannels>::kRowPitch + 4; // lanes of a warp read different banks

    float u[kChannels * kPitch]; // then y
    float delta[kChannels * kPitch];
    float skip[kChannels]; // D; it and the bias are here to spare registers
    float bias[kChannels];
    TileMemory<kChannels> tile; // goes on past its end

    static constexpr size_t bytes(int64_t states) {
        return sizeof(ScanMemory) - sizeof(TileMemory<kChannels>) + TileMemory<kChannels>::bytes(states);
    }
};

// `count` rows of the tile from token `first` on; source: of that token.
template <int kChannels, int kPitch, typename T>
MTMAMBA_DEVICE void stage(ScanLaunch<T> const& launch, T const* source, int64_t first, int count, float* rows) {
    int64_t const length = launch.p.length;
    if (launch.vectors) {
        stageVectors<kChannels, kPitch>(source, length, length - first, count, rows);
    } else {
        stageScalars<kChannels, kPitch>(source, length, length - first, count, rows);
    }
}

// Steps, inputs and D u of this thread's tokens of the tile from `first` on. row: of the block's first channel in u.
template <typename T, int kChannels>
MTMAMBA_DEVICE void loadSegment(ScanLaunch<T> const& launch, ScanMemory<kChannels>& memory, int64_t row, int channels,
                                int64_t first, Segment& own) {
    constexpr int kPitch = ScanMemory<kChannels>::kPitch;
    SelectiveScanParams<T> const& p = launch.p;
    int const thread = static_cast<int>(threadIdx.x), channel = thread % kChannels, segment = thread / kChannels;
    __syncthreads(); // y of the tile before has been read
    stage<kChannels, kPitch>(launch, p.u + row * p.length + first, first, channels, memory.u);
    stage<kChannels, kPitch>(launch, p.delta + row * p.length + first, first, channels, memory.delta);
    __syncthreads();
    int const at = channel * kPitch + segment * kSegmentPitch;
    float const skip = memory.skip[channel], bias = memory.bias[channel];
    MTMAMBA_UNROLL
    for (int i = 0; i < kTokens; i += 4) {
        loadFour(memory.u + at + i, own.input + i);
        loadFour(memory.delta + at + i, own.step + i);
    }
    MTMAMBA_UNROLL
    for (int i = 0; i < kTokens; ++i) {
        float const u = own.input[i], shifted = own.step[i] + bias;
        own.step[i] = p.deltaSoftplus ? DeviceMath::softplus(shifted) : shifted;
        own.input[i] = own.step[i] * u;
        own.y[i] = skip * u;
    }
}

// y of the tile from `first` on, by way of shared memory: neighbouring threads write neighbouring tokens.
template <typename T, int kChannels>
MTMAMBA_DEVICE void storeSegment(SelectiveScanParams<T> const& p, ScanMemory<kChannels>& memory, int64_t row,
                                 int channels, int64_t first, Segment const& own) {
    using S = Shape<kChannels>;
    constexpr int kPitch = ScanMemory<kChannels>::kPitch;
    int const thread = static_cast<int>(threadIdx.x), channel = thread % kChannels, segment = thread / kChannels;
    float* const mine = memory.u + channel * kPitch + segment * kSegmentPitch;
    MTMAMBA_UNROLL
    for (int i = 0; i < kTokens; ++i) {
        mine[i] = own.y[i];
    }
    __syncthreads();
    for (int i = thread; i < channels * S::kTile; i += kThreads) {
        int const c = i / S::kTile, token = i % S::kTile;
        if (first + token < p.length) {
            store(p.y + (row + c) * p.length + first + token, memory.u[c * kPitch + S::at(token)]);
        }
    }
}

template <typename T, int kChannels>
__global__ void __launch_bounds__(kThreads, kBlocksPerSM) selectiveScanKernel(ScanLaunch<T> launch) {
    auto& memory = *static_cast<ScanMemory<kChannels>*>(sharedMemory());
    SelectiveScanParams<T> const& p = launch.p;
    int const states = static_cast<int>(p.states);
    int64_t const block = blockIdx.x, plane = block / launch.groupBlocks; // b * G + g
    int64_t const ofGroup = p.channels / p.groups, firstOfGroup = block % launch.groupBlocks * kChannels;
    int const channels = ofGroup - firstOfGroup < kChannels ? static_cast<int>(ofGroup - firstOfGroup) : kChannels;
    int64_t const first = plane % p.groups * ofGroup + firstOfGroup; // channel of the image
    int64_t const row = plane / p.groups * p.channels + first;
    int const thread = static_cast<int>(threadIdx.x);
    if (thread < kChannels) {
        memory.skip[thread] = thread < channels ? p.D[first + thread] : 0.F;
        memory.bias[thread] = thread < channels ? p.deltaBias[first + thread] : 0.F;
    }
    T const *const B = p.B + plane * p.states * p.length, *const C = p.C + plane * p.states * p.length;
    startStates<kChannels>(memory.tile, p.A + first * p.states, channels, states);
    constexpr int kPitch = Shape<kChannels>::kRowPitch;
    for (int64_t t = 0; t < p.length; t += Shape<kChannels>::kTile) {
        Segment own;
        loadSegment<T, kChannels>(launch, memory, row, channels, t, own);
        for (int n = 0; n < states; n += kStateRows) {
            int const count = states - n < kStateRows ? states - n : kStateRows;
            int64_t const at = n * p.length + t;
            __syncthreads(); // the rows have been read
            stage<kChannels, kPitch>(launch, B + at, t, count, memory.tile.rows);
            stage<kChannels, kPitch>(launch, C + at, t, count, memory.tile.rows + kStateRows * kPitch);
            __syncthreads();
            scanStates<kChannels>(memory.tile, own, n, count);
        }
        storeSegment<T, kChannels>(p, memory, row, channels, t, own);
    }
}

template <typename T, int kChannels> cudaError_t launchScan(SelectiveScanParams<T> const& p, cudaStream_t stream) {
    auto const address = [](T const* pointer) { return reinterpret_cast<uintptr_t>(pointer); };
    ScanLaunch<T> launch{p, (p.channels / p.groups + kChannels - 1) / kChannels, false};
    launch.vectors = p.length * static_cast<int64_t>(sizeof(T)) % 16 == 0 &&
                     (address(p.u) | address(p.delta) | address(p.B) | address(p.C)) % 16 == 0;
    return launchLine(selectiveScanKernel<T, kChannels>, p.batch * p.groups * launch.groupBlocks, kThreads,
                      ScanMemory<kChannels>::bytes(p.states), stream, launch);
}

// Launches on `stream`; neither allocates nor synchronises. The caller has checked that dimensions agree.
template <typename T>
cudaError_t launchSelectiveScan(SelectiveScanParams<T> const& p, int blockChannels, cudaStream_t stream) {
    if (p.states < 1 || p.states > kMaxStates || p.groups < 1 || p.length < 1) {
        return cudaErrorInvalidValue;
    }
    return blockChannels == 32   ? launchScan<T, 32>(p, stream)
           : blockChannels == 16 ? launchScan<T, 16>(p, stream)
                                 : launchScan<T, 8>(p, stream);
}

#endif // MTMAMBA_SIMT

} // namespace mtmamba
