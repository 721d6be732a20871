// What libmtmamba_cpu.so exports, and nothing else. Every function answers 0, or 1 where memory ran out.
#include <new>

#include "cpu/scan.h"
#include "cpu/scan_2d.h"
#include "cpu/scan_2d_backward.h"
#include "cpu/scan_backward.h"

#define MTMAMBA_EXPORT extern "C" __attribute__((visibility("default")))

using namespace mtmamba::cpu;

namespace {
template <typename Body> int guarded(Body const& body) noexcept {
    try {
        body();
        return 0;
    } catch (std::bad_alloc const&) {
        return 1;
    }
}
} // namespace

MTMAMBA_EXPORT int mtmambaCpuSelectiveScan(ScanTensors const* tensors, float* y, int threads) {
    return guarded([&] { selectiveScan(*tensors, y, threads); });
}

MTMAMBA_EXPORT int mtmambaCpuSelectiveScanBackward(ScanTensors const* tensors, ScanGradients const* gradients,
                                                   int threads) {
    return guarded([&] { selectiveScanBackward(*tensors, *gradients, threads); });
}

MTMAMBA_EXPORT int mtmambaCpuSelectiveScan2D(MapTensors const* tensors, float* y, int threads) {
    return guarded([&] { selectiveScan2D(*tensors, y, threads); });
}

MTMAMBA_EXPORT int mtmambaCpuSelectiveScan2DBackward(MapTensors const* tensors, MapGradients const* gradients,
                                                     int threads) {
    return guarded([&] { selectiveScan2DBackward(*tensors, *gradients, threads); });
}

// For the tests of accuracy: the functions themselves on `count` numbers, in place. which: 0 2^x, 1 softplus, 2
// sigmoid.
MTMAMBA_EXPORT void mtmambaCpuFunction(int which, float* values, int64_t count) {
    for (int64_t i = 0; i < count; i += kLanes) {
        Vec x{};
        int const size = static_cast<int>(std::min<int64_t>(kLanes, count - i));
        std::memcpy(&x, values + i, static_cast<size_t>(size) * sizeof(float));
        x = which == 0 ? exp2(x) : which == 1 ? softplus(x) : sigmoid(x);
        std::memcpy(values + i, &x, static_cast<size_t>(size) * sizeof(float));
    }
}

MTMAMBA_EXPORT int mtmambaCpuLanes() { return kLanes; }
