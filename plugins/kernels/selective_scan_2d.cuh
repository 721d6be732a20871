// SS2D's core: four selective scans over a map, summed.
//
// Shapes: B batch, G groups, D channels, H W map, L = H W, K = 4 directions, N states, R rank of the step.
//   d = softplus(dt_weight . low + dt_bias), then the recurrence of the selective scan with D u, in each of four orders
//   (rows, columns, both reversed); y is the sum over the orders. low, B and C come from x_dbl at the pixel. State,
//   step and the sum are float32 whatever the tensors are, and the bits are the same in every run.
//
// Launches: x is turned to channels last and the features are put into the order of each scan, once; then every block
// scans its channels in one order after another, MapPlan::scans of them, adding to a float32 sum in memory; where
// several blocks shared the four orders, their sums are added up.
#pragma once

#include <algorithm>

#include "kernels/map_scan.cuh"
#include "kernels/planes.cuh"

namespace mtmamba {

// How the work is cut. Decided by the sizes alone, so that the workspace is known without a GPU.
struct MapPlan {
    int channels; // of a team of warps: 16 or 8
    int scans;    // of a block, one after another: channels of an image in one direction
};

// For a GPU of 132 multiprocessors, each with places for two blocks of 16 channels a warp. As measured:
// docs/kernels.md.
inline MapPlan mapPlan(int64_t images, int64_t channels) {
    constexpr int64_t kProcessors = 132, kPlaces = 2 * kProcessors;
    int64_t const scans = images * ((channels + 63) / 64) * kDirections; // of 16 channels a team
    // Too few for the multiprocessors; or a second block on some of them, or a third, would decide the time.
    if (scans < 112 || (scans > kProcessors && scans <= 192) || (scans > kPlaces && scans <= kPlaces + 24)) {
        return {8, 1};
    }
    // So many a block that all blocks have a place, if that fills nine places of ten.
    int64_t const each = (scans + kPlaces - 1) / kPlaces;
    if (each <= kDirections && 10 * scans >= 9 * each * kPlaces) {
        return {16, static_cast<int>(each)};
    }
    // All four directions, so that no sums are left, unless too few blocks would come last; else one each.
    int64_t const blocks = scans / kDirections;
    bool const whole = blocks > kPlaces && (blocks % kPlaces >= kPlaces / 3 || blocks >= 8 * kPlaces);
    return {16, whole ? kDirections : 1};
}

// Where the parts of the workspace begin, in bytes.
template <typename T> struct MapWorkspace {
    int parts = 0; // of a sum, at most
    int64_t channelPitch = 0;
    int64_t BC = 0;       // x, channels last, comes first: [B, G, L, channelPitch] of T; then OrderParams::BC
    int64_t low = 0;      // OrderParams::low
    int64_t pitch = 0;    // L up to a multiple of kMapPitch
    int64_t sums = 0;     // float32 [sumCount][B, G, L, channelPitch]
    int64_t sumBytes = 0; // of one of them
    int64_t sumCount = 0; // where y is float32 and without gaps, it is the first part's
    int64_t bytes = 0;

    MapWorkspace(int64_t batch, int64_t groups, int64_t channels, int64_t height, int64_t width, int64_t rank,
                 int64_t states, MapPlan const& plan)
        : parts(maxPartsOf(plan.scans)) {
        int64_t const images = batch * groups, length = height * width, ofFloat = sizeof(float);
        pitch = (length + kMapPitch - 1) / kMapPitch * kMapPitch;
        channelPitch = (channels + kChannelPitch - 1) / kChannelPitch * kChannelPitch;
        BC = aligned(images * length * channelPitch * static_cast<int64_t>(sizeof(T)));
        int64_t const scans = images * kDirections;
        low = BC + aligned(scans * foldsOf(states) * pitch * 2 * kFold * ofFloat);
        sums = low + aligned(scans * pitch * lowColumns(rank) * ofFloat);
        sumBytes = aligned(images * length * channelPitch * ofFloat);
        sumCount = parts - (sizeof(T) == sizeof(float) && channels == channelPitch ? 1 : 0);
        bytes = sums + sumCount * sumBytes;
    }
    static int64_t aligned(int64_t bytes) { return (bytes + 255) / 256 * 256; }
};

// Bytes of params.workspace that do for tensors of these sizes and of any batch from `smallest` to `largest`: fewer
// images may be cut into more parts.
template <typename T>
int64_t workspaceBytes(int64_t smallest, int64_t largest, int64_t groups, int64_t channels, int64_t height,
                       int64_t width, int64_t rank, int64_t states) {
    int64_t bytes = 0;
    for (int64_t batch = largest; batch >= std::max<int64_t>(smallest, 1); --batch) {
        MapPlan const plan = mapPlan(batch * groups, channels);
        MapWorkspace<T> const layout(batch, groups, channels, height, width, rank, states, plan);
        bytes = std::max(bytes, layout.bytes);
        if (layout.parts == kMaxParts) {
            break;
        }
    }
    return bytes;
}

#ifdef MTMAMBA_SIMT

// x and x_dbl into the workspace.
template <typename T> cudaError_t orderInputs(MapLaunch<T> const& launch, float* BC, float* low, cudaStream_t stream) {
    SelectiveScan2DParams<T> const& p = launch.p;
    int64_t const images = p.batch * p.groups;
    TurnParams<T> const turn{p.x,        static_cast<T*>(p.workspace), images,
                             p.channels, p.height * p.width,           launch.channelPitch};
    cudaError_t const error = launchTurn(turn, stream);
    if (error != cudaSuccess) {
        return error;
    }
    OrderParams<T> order{};
    order.from = p.xDbl;
    order.BC = BC;
    order.low = low;
    order.images = images;
    order.height = p.height;
    order.width = p.width;
    order.pitch = launch.pitch;
    order.rank = p.rank;
    order.columns = launch.lowColumns;
    order.states = p.states;
    return launchOrder(order, stream);
}

// Launches on `stream`; neither allocates nor synchronises. The caller has checked that dimensions agree. The workspace
// is the plan's.
template <typename T>
cudaError_t launchSelectiveScan2D(SelectiveScan2DParams<T> const& p, MapPlan const& plan, cudaStream_t stream) {
    int64_t const images = p.batch * p.groups, length = p.height * p.width;
    bool const sizes = p.states >= 1 && p.states <= kMaxStates && p.rank >= 0 && images >= 1 && p.channels >= 1 &&
                       length >= 1 && p.channels <= INT32_MAX / 4 && length <= INT32_MAX && p.rank <= INT32_MAX / 2 &&
                       length * (p.rank + 2 * p.states + 16) <= INT32_MAX;
    auto const address = reinterpret_cast<uintptr_t>(p.workspace) | reinterpret_cast<uintptr_t>(p.y);
    if (!sizes || !p.workspace || !p.y || address % 16 != 0) {
        return cudaErrorInvalidValue;
    }
    MapWorkspace<T> const layout(p.batch, p.groups, p.channels, p.height, p.width, p.rank, p.states, plan);
    char* const workspace = static_cast<char*>(p.workspace);
    auto* const BC = reinterpret_cast<float*>(workspace + layout.BC);
    auto* const low = reinterpret_cast<float*>(workspace + layout.low);
    MapLaunch<T> launch{};
    launch.p = p;
    launch.tokens = static_cast<T const*>(p.workspace);
    launch.BC = BC;
    launch.low = low;
    launch.pitch = layout.pitch;
    launch.channelPitch = layout.channelPitch;
    launch.lowColumns = static_cast<int>(lowColumns(p.rank));
    launch.scans = plan.scans;
    launch.direct = p.channels == layout.channelPitch;
    SumParams<T> sum{};
    int const inOutput = layout.parts - static_cast<int>(layout.sumCount);
    for (int i = 0; i < layout.parts; ++i) {
        char* const from = workspace + layout.sums + (i - inOutput) * layout.sumBytes;
        launch.sums[i] = i < inOutput ? reinterpret_cast<float*>(p.y) : reinterpret_cast<float*>(from);
        sum.parts[i] = launch.sums[i];
    }
    cudaError_t error = orderInputs(launch, BC, low, stream);
    bool const wide = plan.channels == 16 && MapMemory<T, 2>::bytes(launch) <= maxSharedBytes();
    if (error == cudaSuccess) {
        error = wide ? launchMapScan<T, 2>(launch, stream) : launchMapScan<T, 1>(launch, stream);
    }
    if (error != cudaSuccess || (launch.direct && layout.parts == 1)) {
        return error;
    }
    sum.to = p.y;
    sum.rows = images * length;
    sum.columns = p.channels;
    sum.pitch = layout.channelPitch;
    sum.length = length;
    sum.unitColumns = wide ? MapMemory<T, 2>::kChannels : MapMemory<T, 1>::kChannels;
    sum.units = static_cast<int>((p.channels + sum.unitColumns - 1) / sum.unitColumns);
    sum.scans = plan.scans;
    sum.direct = launch.direct;
    return launchSum(sum, stream);
}

#endif // MTMAMBA_SIMT

} // namespace mtmamba
