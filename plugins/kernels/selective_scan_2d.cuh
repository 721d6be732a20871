// SS2D's core: four selective scans over a map, summed.
//
// Shapes: B batch, G groups, D channels, H W map, L = H W, K = 4 directions, N states, R rank of the step.
//   d = softplus(dt_weight . low + dt_bias), then the recurrence of the selective scan with D u, in each of four orders
//   (rows, columns, both reversed); y is the sum over the orders. low, B and C come from x_dbl at the pixel. State,
//   step and the sum are float32 whatever the tensors are, and the bits are the same in every run.
//
// Launches: x is turned to channels last and x_dbl is put into the order of each scan, once; then every block scans its
// channels in 4, 2 or 1 of the orders (MapPlan::parts blocks share the four), adding to a float32 sum in memory; where
// several blocks shared them, their sums are added up.
#pragma once

#include <type_traits>

#include "kernels/planes.cuh"
#include "kernels/tile.cuh"

namespace mtmamba {

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

// How the work is cut. Decided by the sizes alone, so that the workspace is known without a GPU.
struct MapPlan {
    int channels; // of a block: 32, 16 or 8
    int parts;    // blocks that share the four directions: 1, 2 or 4
};

// The fewest, widest blocks that still fill a large GPU: wide blocks stage B and C for more channels, and fewer parts
// move less memory.
inline MapPlan mapPlan(int64_t images, int64_t channels) {
    constexpr int64_t kEnough = 384; // blocks: three for each of 128 multiprocessors
    MapPlan const plans[] = {{32, 1}, {16, 1}, {8, 1}, {8, 2}};
    for (MapPlan const& plan : plans) {
        if (images * ((channels + plan.channels - 1) / plan.channels) * plan.parts >= kEnough) {
            return plan;
        }
    }
    return {8, 4};
}

constexpr int64_t kFeaturePitch = 256; // tokens: the longest tile, so that no tile runs past a row's end

// Where the parts of the workspace begin, in bytes.
template <typename T> struct MapWorkspace {
    int64_t tokens = 0;   // x, channels last: [B, G, L, D] of T
    int64_t features = 0; // x_dbl in the order of the scans: [B, G, K, R+2N, pitch] of T
    int64_t pitch = 0;    // L and zeros up to a multiple of kFeaturePitch
    int64_t sums = 0;     // float32 [sumCount][B, G, L, D]
    int64_t sumBytes = 0; // of one of them
    int64_t sumCount = 0; // where y is float32, it is the first part's
    int64_t bytes = 0;

    MapWorkspace(int64_t batch, int64_t groups, int64_t channels, int64_t height, int64_t width, int64_t rank,
                 int64_t states, MapPlan const& plan) {
        int64_t const images = batch * groups, length = height * width, ofType = sizeof(T);
        pitch = (length + kFeaturePitch - 1) / kFeaturePitch * kFeaturePitch;
        features = aligned(images * length * channels * ofType);
        sums = features + aligned(images * kDirections * (rank + 2 * states) * pitch * ofType);
        sumBytes = aligned(images * length * channels * static_cast<int64_t>(sizeof(float)));
        sumCount = plan.parts - (std::is_same<T, float>::value ? 1 : 0);
        bytes = sums + sumCount * sumBytes;
    }
    static int64_t aligned(int64_t bytes) { return (bytes + 255) / 256 * 256; }
};

// Bytes of params.workspace, exactly.
template <typename T>
int64_t workspaceBytes(int64_t batch, int64_t groups, int64_t channels, int64_t height, int64_t width, int64_t rank,
                       int64_t states) {
    MapPlan const plan = mapPlan(batch * groups, channels);
    return MapWorkspace<T>(batch, groups, channels, height, width, rank, states, plan).bytes;
}

#ifdef MTMAMBA_SIMT

template <typename T> struct MapLaunch {
    SelectiveScan2DParams<T> p;
    T const* tokens;
    T const* features;
    float* sums[kMaxParts]; // of each part
    int64_t pitch;          // of the features
    uint32_t pixelBytes;    // from one pixel of tokens or y to the next
    uint32_t sumBytes;      // of sums
    int64_t channelBlocks;
    int parts;
};

constexpr int kWeightRows = 48; // the rank of the widest stage of Swin-L

template <int kChannels> struct alignas(16) MapMemory {
    int pixels[Shape<kChannels>::kTile];       // of the tile's tokens; 0 past the end
    float weights[kWeightRows][kChannels + 1]; // all of a direction where they fit, else those of kRows rows
    TileMemory<kChannels> tile;                // goes on past its end

    static constexpr size_t bytes(int64_t states) {
        return sizeof(MapMemory) - sizeof(TileMemory<kChannels>) + TileMemory<kChannels>::bytes(states);
    }
};

// A block's place: `channels` channels from `channel` on, of image b * G + g, in direction k. Lanes past its last
// channel compute that one again and store nothing.
struct MapPlace {
    int64_t image, group, channel;
    int channels, direction, lane; // lane: the thread's channel of the block
    float skip, bias;              // D and the step's bias of the thread's channel

    MTMAMBA_DEVICE int own() const { return lane < channels ? lane : channels - 1; }
    template <typename T> MTMAMBA_DEVICE int64_t row(SelectiveScan2DParams<T> const& p) const { // of the parameters
        return (group * kDirections + direction) * p.channels + channel;
    }
    // Of the thread's channel, in [B, G, L, D].
    template <typename T> MTMAMBA_DEVICE int64_t firstPixel(SelectiveScan2DParams<T> const& p) const {
        return image * p.height * p.width * p.channels + channel + own();
    }
};

// The value at a pixel, `base` being pixel 0's of the same channel. pixelBytes: from one pixel to the next. A single
// multiplication of 32 by 32 bits, added to the address.
template <typename T> MTMAMBA_DEVICE T* atPixel(T* base, int pixel, uint32_t pixelBytes) {
    using Byte = typename std::conditional<std::is_const<T>::value, char const, char>::type;
    return reinterpret_cast<T*>(reinterpret_cast<Byte*>(base) +
                                static_cast<uint64_t>(static_cast<uint32_t>(pixel)) * pixelBytes);
}

// The pixels of this thread's tokens; past the end the first one, which counts for nothing there.
template <int kChannels> MTMAMBA_DEVICE void loadPixels(MapMemory<kChannels> const& memory, int* pixels) {
    int const segment = static_cast<int>(threadIdx.x) / kChannels;
    MTMAMBA_UNROLL
    for (int i = 0; i < kTokens; i += 4) {
        int4 const four = *reinterpret_cast<int4 const*>(memory.pixels + segment * kTokens + i);
        pixels[i] = four.x;
        pixels[i + 1] = four.y;
        pixels[i + 2] = four.z;
        pixels[i + 3] = four.w;
    }
}

// x and the sum so far of this thread's tokens, to own.input and own.y. fresh: nothing has been summed yet.
template <typename T, int kChannels>
MTMAMBA_DEVICE void loadTokens(MapLaunch<T> const& launch, MapPlace const& place, MapMemory<kChannels> const& memory,
                               float const* sums, bool fresh, Segment& own) {
    T const* const from = launch.tokens + place.firstPixel(launch.p);
    float const* const sum = sums + place.firstPixel(launch.p);
    int pixels[kTokens];
    loadPixels(memory, pixels);
    MTMAMBA_UNROLL
    for (int i = 0; i < kTokens; ++i) {
        own.input[i] = toFloat(*atPixel(from, pixels[i], launch.pixelBytes));
        own.y[i] = 0.F;
    }
    if (!fresh) {
        MTMAMBA_UNROLL
        for (int i = 0; i < kTokens; ++i) {
            own.y[i] = *atPixel(sum, pixels[i], launch.sumBytes);
        }
    }
}

// Rows [r0, r0 + count) of the step's weights, for each channel of the block, to memory's rows from `at` on.
template <typename T, int kChannels>
MTMAMBA_DEVICE void loadWeights(SelectiveScan2DParams<T> const& p, MapPlace const& place, MapMemory<kChannels>& memory,
                                int r0, int count, int at) {
    int const r = static_cast<int>(threadIdx.x) % kRows, first = static_cast<int>(threadIdx.x) / kRows;
    float const* from = p.dtWeight + (place.row(p) + first) * p.rank + r0 + r;
    for (int c = first; c < place.channels && r < count; c += kThreads / kRows) {
        memory.weights[at + r][c] = __ldg(from);
        from += kThreads / kRows * p.rank;
    }
}

// own.step + the low-rank step's product over `count` rows of the tile, four tokens at a time. The weights begin at row
// `at` of memory's.
template <int kChannels>
MTMAMBA_DEVICE void addLowRank(MapMemory<kChannels> const& memory, int channel, int segment, int at, int count,
                               Segment& own) {
    float const* low = memory.tile.rows + segment * kSegmentPitch;
    float const* weight = &memory.weights[at][channel];
#pragma unroll 4
    for (int r = 0; r < count; ++r) {
        MTMAMBA_UNROLL
        for (int i = 0; i < kTokens; i += 4) {
            float values[4];
            loadFour(low + i, values);
            MTMAMBA_UNROLL
            for (int j = 0; j < 4; ++j) {
                own.step[i + j] += *weight * values[j];
            }
        }
        low += Shape<kChannels>::kRowPitch;
        weight += kChannels + 1;
    }
}

// Steps, inputs and y (so far, with D u) of this thread's tokens of the tile from `first` on. features: of the tile's
// first token, [R+2N][pitch].
template <typename T, int kChannels>
MTMAMBA_DEVICE void loadSegment(MapLaunch<T> const& launch, MapPlace const& place, MapMemory<kChannels>& memory,
                                T const* features, int64_t first, float const* sums, bool fresh, Segment& own) {
    using S = Shape<kChannels>;
    SelectiveScan2DParams<T> const& p = launch.p;
    int const thread = static_cast<int>(threadIdx.x), channel = thread % kChannels, segment = thread / kChannels;
    int const height = static_cast<int>(p.height), width = static_cast<int>(p.width), rank = static_cast<int>(p.rank);
    int const left = static_cast<int>(p.height * p.width - first); // tokens
    MTMAMBA_UNROLL
    for (int i = 0; i < kTokens; ++i) {
        own.step[i] = place.bias;
    }
    bool const fit = rank <= kWeightRows; // then the weights are loaded once
    int r0 = 0;
    do {
        int const count = rank - r0 < kRows ? rank - r0 : kRows;
        __syncthreads(); // whoever read what is overwritten now is done
        stageVectors<kChannels>(features + r0 * launch.pitch, launch.pitch, S::kTile, count, memory.tile.rows);
        if (first == 0 || !fit) {
            loadWeights(p, place, memory, r0, count, fit ? r0 : 0);
        }
        for (int i = thread; r0 == 0 && i < S::kTile; i += kThreads) {
            memory.pixels[i] = i < left ? pixelOf(place.direction, static_cast<int>(first) + i, height, width) : 0;
        }
        __syncthreads();
        if (r0 == 0) { // early: these come from far
            loadTokens(launch, place, memory, sums, fresh, own);
        }
        addLowRank(memory, channel, segment, fit ? r0 : 0, count, own);
        r0 += kRows;
    } while (r0 < rank);
    MTMAMBA_UNROLL
    for (int i = 0; i < kTokens; ++i) {
        float const u = own.input[i], d = DeviceMath::softplus(own.step[i]);
        own.step[i] = d;
        own.input[i] = d * u;
        own.y[i] += place.skip * u;
    }
}

// y of this thread's first `count` tokens to `target`, pixel 0's of its channel.
template <typename Target, int kChannels>
MTMAMBA_DEVICE void storeSegment(Target* target, uint32_t pixelBytes, MapMemory<kChannels> const& memory,
                                 Segment const& own, int count) {
    int pixels[kTokens];
    loadPixels(memory, pixels);
    if (count >= kTokens) { // nearly always: without a comparison for each
        MTMAMBA_UNROLL
        for (int i = 0; i < kTokens; ++i) {
            store(atPixel(target, pixels[i], pixelBytes), own.y[i]);
        }
        return;
    }
    MTMAMBA_UNROLL
    for (int i = 0; i < kTokens - 1; ++i) {
        if (i < count) {
            store(atPixel(target, pixels[i], pixelBytes), own.y[i]);
        }
    }
}

// One direction of the block's channels. fresh, last: the first, the last of those that this block sums.
template <typename T, int kChannels>
MTMAMBA_DEVICE void scanDirection(MapLaunch<T> const& launch, MapPlace const& place, MapMemory<kChannels>& memory,
                                  float* sums, bool fresh, bool last) {
    using S = Shape<kChannels>;
    SelectiveScan2DParams<T> const& p = launch.p;
    int const states = static_cast<int>(p.states);
    int64_t const length = p.height * p.width;
    T const* const features =
        launch.features + (place.image * kDirections + place.direction) * (p.rank + 2 * p.states) * launch.pitch;
    __syncthreads(); // the direction before has read its A
    startStates<kChannels>(memory.tile, p.A + place.row(p) * p.states, place.channels, states);
    for (int64_t first = 0; first < length; first += S::kTile) {
        Segment own;
        loadSegment<T, kChannels>(launch, place, memory, features + first, first, sums, fresh, own);
        for (int n = 0; n < states; n += kStateRows) {
            int const count = states - n < kStateRows ? states - n : kStateRows;
            T const* const B = features + (p.rank + n) * launch.pitch + first;
            T const* const C = B + p.states * launch.pitch;
            float* const rows = memory.tile.rows;
            __syncthreads(); // the rows have been read
            stageVectors<kChannels>(B, launch.pitch, S::kTile, count, rows);
            stageVectors<kChannels>(C, launch.pitch, S::kTile, count, rows + kStateRows * S::kRowPitch);
            __syncthreads();
            scanStates<kChannels>(memory.tile, own, n, count);
        }
        if (place.lane < place.channels) {
            int64_t const at = place.firstPixel(p);
            int const count = static_cast<int>(length - first) - static_cast<int>(threadIdx.x) / kChannels * kTokens;
            if (last && launch.parts == 1) {
                storeSegment(p.y + at, launch.pixelBytes, memory, own, count);
            } else {
                storeSegment(sums + at, launch.sumBytes, memory, own, count);
            }
        }
    }
}

template <typename T, int kChannels>
__global__ void __launch_bounds__(kThreads, kBlocksPerSM) selectiveScan2DKernel(MapLaunch<T> launch) {
    auto& memory = *static_cast<MapMemory<kChannels>*>(sharedMemory());
    int64_t const block = blockIdx.x, part = block % launch.parts, unit = block / launch.parts;
    MapPlace place;
    place.image = unit / launch.channelBlocks;
    place.group = place.image % launch.p.groups;
    place.lane = static_cast<int>(threadIdx.x) % kChannels;
    place.channel = unit % launch.channelBlocks * kChannels;
    int64_t const left = launch.p.channels - place.channel;
    place.channels = left < kChannels ? static_cast<int>(left) : kChannels;
    int const parts = launch.parts;
    float* const sums = launch.sums[part];
    for (int k = static_cast<int>(part); k < kDirections; k += parts) {
        place.direction = k;
        place.skip = launch.p.D[place.row(launch.p) + place.own()];
        place.bias = launch.p.dtBias[place.row(launch.p) + place.own()];
        scanDirection<T, kChannels>(launch, place, memory, sums, k < parts, k + parts >= kDirections);
    }
}

template <typename T, int kChannels>
cudaError_t launchMapScan(MapLaunch<T>& launch, int64_t images, cudaStream_t stream) {
    launch.channelBlocks = (launch.p.channels + kChannels - 1) / kChannels;
    return launchLine(selectiveScan2DKernel<T, kChannels>, images * launch.channelBlocks * launch.parts, kThreads,
                      MapMemory<kChannels>::bytes(launch.p.states), stream, launch);
}

// x and x_dbl into the workspace.
template <typename T>
cudaError_t orderInputs(SelectiveScan2DParams<T> const& p, T* tokens, T* features, int64_t pitch, cudaStream_t stream) {
    int64_t const images = p.batch * p.groups;
    cudaError_t const error = launchTurn(TurnParams<T>{p.x, tokens, images, p.channels, p.height * p.width}, stream);
    if (error != cudaSuccess) {
        return error;
    }
    return launchOrder(OrderParams<T>{p.xDbl, features, images, p.rank + 2 * p.states, p.height, p.width, pitch},
                       stream);
}

// Launches on `stream`; neither allocates nor synchronises. The caller has checked that dimensions agree. The workspace
// is the plan's.
template <typename T>
cudaError_t launchSelectiveScan2D(SelectiveScan2DParams<T> const& p, MapPlan const& plan, cudaStream_t stream) {
    int64_t const images = p.batch * p.groups, length = p.height * p.width;
    bool const sizes = p.states >= 1 && p.states <= kMaxStates && p.rank >= 0 && images >= 1 && p.channels >= 1 &&
                       length >= 1 && p.channels <= INT32_MAX / 4 && length <= INT32_MAX && p.rank <= INT32_MAX;
    if (!sizes || !p.workspace || reinterpret_cast<uintptr_t>(p.workspace) % 16 != 0) {
        return cudaErrorInvalidValue;
    }
    MapWorkspace<T> const layout(p.batch, p.groups, p.channels, p.height, p.width, p.rank, p.states, plan);
    char* const workspace = static_cast<char*>(p.workspace);
    T *const tokens = reinterpret_cast<T*>(workspace + layout.tokens), *const features = reinterpret_cast<T*>(
                                                                           workspace + layout.features);
    cudaError_t error = orderInputs(p, tokens, features, layout.pitch, stream);
    if (error != cudaSuccess) {
        return error;
    }
    MapLaunch<T> launch{};
    launch.p = p;
    launch.tokens = tokens;
    launch.features = features;
    launch.pitch = layout.pitch;
    launch.pixelBytes = static_cast<uint32_t>(p.channels * static_cast<int64_t>(sizeof(T)));
    launch.sumBytes = static_cast<uint32_t>(p.channels * static_cast<int64_t>(sizeof(float)));
    launch.parts = plan.parts;
    SumParams<T> sum{};
    int const inOutput = plan.parts - static_cast<int>(layout.sumCount);
    for (int i = 0; i < plan.parts; ++i) {
        char* const from = workspace + layout.sums + (i - inOutput) * layout.sumBytes;
        launch.sums[i] = i < inOutput ? reinterpret_cast<float*>(p.y) : reinterpret_cast<float*>(from);
        sum.parts[i] = launch.sums[i];
    }
    error = plan.channels == 32   ? launchMapScan<T, 32>(launch, images, stream)
            : plan.channels == 16 ? launchMapScan<T, 16>(launch, images, stream)
                                  : launchMapScan<T, 8>(launch, images, stream);
    if (error != cudaSuccess || plan.parts == 1) {
        return error;
    }
    sum.to = p.y;
    sum.count = images * length * p.channels;
    sum.partCount = plan.parts;
    return launchSum(sum, stream);
}

#endif // MTMAMBA_SIMT

} // namespace mtmamba
