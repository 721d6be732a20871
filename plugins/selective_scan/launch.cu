#include "selective_scan/launch.h"

namespace mtmamba {

template <typename T>
cudaError_t runSelectiveScan(SelectiveScanParams<T> const& params, int blockChannels, cudaStream_t stream) {
    return launchSelectiveScan(params, blockChannels, stream);
}

#define MTMAMBA_INSTANCE(T) template cudaError_t runSelectiveScan(SelectiveScanParams<T> const&, int, cudaStream_t);
MTMAMBA_INSTANCE(float)
MTMAMBA_INSTANCE(__half)
MTMAMBA_INSTANCE(__nv_bfloat16)

} // namespace mtmamba
