#include "selective_scan_2d/launch.h"

namespace mtmamba {

template <typename T>
cudaError_t runSelectiveScan2D(SelectiveScan2DParams<T> const& params, MapPlan const& plan, cudaStream_t stream) {
    return launchSelectiveScan2D(params, plan, stream);
}

#define MTMAMBA_INSTANCE(T)                                                                                            \
    template cudaError_t runSelectiveScan2D(SelectiveScan2DParams<T> const&, MapPlan const&, cudaStream_t);
MTMAMBA_INSTANCE(float)
MTMAMBA_INSTANCE(__half)
MTMAMBA_INSTANCE(__nv_bfloat16)

} // namespace mtmamba
