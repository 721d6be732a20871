#include "selective_scan/launch.h"

namespace mtmamba {

cudaError_t runSelectiveScan(SelectiveScanParams<float> const& params, cudaStream_t stream) {
    return launchSelectiveScan(params, stream);
}

cudaError_t runSelectiveScan(SelectiveScanParams<__half> const& params, cudaStream_t stream) {
    return launchSelectiveScan(params, stream);
}

} // namespace mtmamba
