#include "selective_scan_2d/op.h"

#include "selective_scan_2d/contract.h"
#include "selective_scan_2d/launch.h"

namespace mtmamba {
namespace {

using namespace scan2d;

cudaError_t launch(Call const& call) {
    return withType(call.tensors[kX].type, cudaErrorInvalidValue, [&](auto zero) {
        using T = decltype(zero);
        SelectiveScan2DParams<T> params{};
        params.x = call.input<T>(kX);
        params.xDbl = call.input<T>(kXDbl);
        params.dtWeight = call.input<float>(kDtWeight);
        params.dtBias = call.input<float>(kDtBias);
        params.A = call.input<float>(kA);
        params.D = call.input<float>(kD);
        params.y = static_cast<T*>(call.output);
        params.workspace = call.workspace;
        params.batch = call.dim(kX, 0);
        params.groups = call.dim(kX, 1);
        params.channels = call.dim(kX, 2);
        params.height = call.dim(kX, 3);
        params.width = call.dim(kX, 4);
        params.rank = call.dim(kDtWeight, 3);
        params.states = call.dim(kA, 3);
        return runSelectiveScan2D(params, call.stream);
    });
}

size_t workspaceOf(nvinfer1::DataType type, nvinfer1::Dims const* smallest, nvinfer1::Dims const* largest) {
    int64_t const* const x = largest[kX].d;
    int64_t const rank = largest[kDtWeight].d[3], states = largest[kA].d[3], batch = smallest[kX].d[0];
    return withType(type, size_t{0}, [&](auto zero) {
        return static_cast<size_t>(workspaceBytes<decltype(zero)>(batch, x[0], x[1], x[2], x[3], x[4], rank, states));
    });
}

} // namespace

Op const kSelectiveScan2D{kSelectiveScan2DSpec, launch, workspaceOf};

} // namespace mtmamba
