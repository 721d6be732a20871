// The functions of libmtmamba_cuda.so with the emulator in the GPU's place: pointers are the host's, the
// stream is the number of a schedule. Same source, same calls; the tests load it where the real library would be.
#include "cuda.h"

#include <string>

inline cudaError_t emulatedSetDevice(int device) { return device == 0 ? cudaSuccess : cudaErrorInvalidDevice; }
#define cudaSetDevice emulatedSetDevice
#define mtmambaCudaErrorText errorText
#define mtmambaCudaSelectiveScan scanForward
#define mtmambaCudaSelectiveScan2D mapForward
#define mtmambaCudaSelectiveScanBackward scanBackward
#define mtmambaCudaSelectiveScan2DBackward mapBackward
#include "selective_scan/launch.cu"
#undef MTMAMBA_INSTANCE
#include "selective_scan_2d/launch.cu"
#include "torch_cuda/backward.cu"
#include "torch_cuda/backward_2d.cu"
#include "torch_cuda/forward.cu"
#undef mtmambaCudaErrorText
#undef mtmambaCudaSelectiveScan
#undef mtmambaCudaSelectiveScan2D
#undef mtmambaCudaSelectiveScanBackward
#undef mtmambaCudaSelectiveScan2DBackward

namespace {

// What the emulator found, or "".
std::string& complaint() {
    static std::string text;
    return text;
}

template <typename Run> int emulated(Place const* place, Run const& run) {
    emulator::seed() = static_cast<unsigned>(reinterpret_cast<uintptr_t>(place->stream));
    try {
        return run();
    } catch (emulator::Error const& error) {
        complaint() = error.what();
        return cudaErrorLaunchFailure;
    }
}

} // namespace

MTMAMBA_EXPORT int mtmambaCudaSelectiveScan(ScanArguments const* a, void* y, Place const* place) {
    return emulated(place, [&] { return scanForward(a, y, place); });
}

MTMAMBA_EXPORT int mtmambaCudaSelectiveScan2D(MapArguments const* a, void* y, Place const* place) {
    return emulated(place, [&] { return mapForward(a, y, place); });
}

MTMAMBA_EXPORT int mtmambaCudaSelectiveScanBackward(ScanArguments const* a, ScanGradientArguments const* g,
                                                    Place const* place) {
    return emulated(place, [&] { return scanBackward(a, g, place); });
}

MTMAMBA_EXPORT int mtmambaCudaSelectiveScan2DBackward(MapArguments const* a, MapGradientArguments const* g,
                                                      Place const* place) {
    return emulated(place, [&] { return mapBackward(a, g, place); });
}

MTMAMBA_EXPORT char const* mtmambaCudaErrorText(int error) {
    static std::string text;
    text = error == cudaErrorLaunchFailure ? complaint() : "error " + std::to_string(error);
    return text.c_str();
}
