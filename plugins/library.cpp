// What libmtmamba_plugins.so exports, and nothing else.
#include <NvInferRuntime.h>

#include "common/log.h"
#include "common/plugin.h"
#include "selective_scan/op.h"
#include "selective_scan_2d/op.h"

#define MTMAMBA_EXPORT extern "C" __attribute__((visibility("default")))

// Called by IPluginRegistry::loadLibrary.
MTMAMBA_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
    static mtmamba::OpCreator creators[] = {mtmamba::OpCreator(mtmamba::kSelectiveScan),
                                            mtmamba::OpCreator(mtmamba::kSelectiveScan2D)};
    static nvinfer1::IPluginCreatorInterface* const list[] = {&creators[0], &creators[1]};
    count = 2;
    return list;
}

// The list of version-2 creators (nvinfer1::IPluginCreator), which some versions look for beside getCreators: there are
// none here, and a version-3 creator must not be taken for one.
MTMAMBA_EXPORT void* const* getPluginCreators(int32_t& count) {
    count = 0;
    return nullptr;
}

MTMAMBA_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) { mtmamba::setLoggerFinder(finder); }

// For hosts that TensorRT hands no logger finder for: severity (ILogger::Severity) and message. nullptr: none again.
MTMAMBA_EXPORT void mtmambaSetLogCallback(mtmamba::LogCallback callback) { mtmamba::setLogCallback(callback); }

// SHA-256 over the sources this library was built from: an engine's sidecar holds it.
MTMAMBA_EXPORT char const* mtmambaPluginHash() { return MTMAMBA_PLUGIN_HASH; }
