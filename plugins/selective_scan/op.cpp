#include "selective_scan/op.h"

#include "selective_scan/contract.h"
#include "selective_scan/launch.h"

namespace mtmamba {
namespace {

using namespace scan;

cudaError_t launch(Call const& call) {
    return withType(call.tensors[kU].type, cudaErrorInvalidValue, [&](auto zero) {
        using T = decltype(zero);
        SelectiveScanParams<T> params{};
        params.u = call.input<T>(kU);
        params.delta = call.input<T>(kDelta);
        params.A = call.input<float>(kA);
        params.B = call.input<T>(kB);
        params.C = call.input<T>(kC);
        params.D = call.input<float>(kD);
        params.deltaBias = call.input<float>(kDeltaBias);
        params.y = static_cast<T*>(call.output);
        params.batch = call.dim(kB, 0);
        params.channels = call.dim(kA, 0);
        params.groups = call.dim(kB, 1);
        params.states = call.dim(kB, 2);
        params.length = call.dim(kB, 3);
        params.deltaSoftplus = call.attributes[0] == 1;
        return runSelectiveScan(params, call.stream);
    });
}

size_t noWorkspace(nvinfer1::DataType, nvinfer1::Dims const*, nvinfer1::Dims const*) { return 0; }

} // namespace

Op const kSelectiveScan{kSelectiveScanSpec, launch, noWorkspace};

} // namespace mtmamba
