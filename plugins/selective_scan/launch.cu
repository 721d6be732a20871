#include "selective_scan/launch.h"

namespace mtmamba {

template <typename T> cudaError_t runSelectiveScan(SelectiveScanParams<T> const& params, cudaStream_t stream) {
    return launchSelectiveScan(params, stream);
}

template cudaError_t runSelectiveScan(SelectiveScanParams<float> const&, cudaStream_t);
template cudaError_t runSelectiveScan(SelectiveScanParams<__half> const&, cudaStream_t);
template cudaError_t runSelectiveScan(SelectiveScanParams<__nv_bfloat16> const&, cudaStream_t);

} // namespace mtmamba
