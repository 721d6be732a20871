#include "selective_scan_2d/launch.h"

namespace mtmamba {

template <typename T> cudaError_t runSelectiveScan2D(SelectiveScan2DParams<T> const& params, cudaStream_t stream) {
    return launchSelectiveScan2D(params, stream);
}

template cudaError_t runSelectiveScan2D(SelectiveScan2DParams<float> const&, cudaStream_t);
template cudaError_t runSelectiveScan2D(SelectiveScan2DParams<__half> const&, cudaStream_t);
template cudaError_t runSelectiveScan2D(SelectiveScan2DParams<__nv_bfloat16> const&, cudaStream_t);

} // namespace mtmamba
