#include "selective_scan/plugin.h"

#include <string>

#include "common/log.h"
#include "selective_scan/launch.h"
#include "selective_scan/shapes.h"

namespace mtmamba {

using namespace nvinfer1;

namespace {

constexpr int32_t kSuccess = 0;
constexpr int32_t kFailure = -1;

bool isParameter(int32_t tensor) { return tensor == kA || tensor == kD || tensor == kDeltaBias; }

bool isLinear(PluginTensorDesc const& desc, DataType type) {
    return desc.format == TensorFormat::kLINEAR && desc.type == type;
}

// Collects the dimensions of all eight tensors; `at` gives input and output descriptions.
template <typename Desc> ScanDims dimsOf(Desc const* in, Desc const* out, Dims const& (*at)(Desc const&)) {
    ScanDims dims{};
    for (int32_t i = 0; i < kScanInputs; ++i) {
        dims[i] = at(in[i]);
    }
    dims[kY] = at(out[0]);
    return dims;
}

int32_t checkCounts(int32_t nbInputs, int32_t nbOutputs) {
    if (nbInputs == kScanInputs && nbOutputs == 1) {
        return kSuccess;
    }
    logError("SelectiveScan: expected 7 inputs and 1 output, found " + std::to_string(nbInputs) + " and " +
             std::to_string(nbOutputs));
    return kFailure;
}

int32_t checkDims(ScanDims const& dims) {
    std::string const problem = checkScanDims(dims);
    if (problem.empty()) {
        return kSuccess;
    }
    logError(problem);
    return kFailure;
}

template <typename T>
cudaError_t run(PluginTensorDesc const* desc, void const* const* in, void* y, bool deltaSoftplus, cudaStream_t stream) {
    SelectiveScanParams<T> params{};
    params.u = static_cast<T const*>(in[kU]);
    params.delta = static_cast<T const*>(in[kDelta]);
    params.A = static_cast<float const*>(in[kA]);
    params.B = static_cast<T const*>(in[kB]);
    params.C = static_cast<T const*>(in[kC]);
    params.D = static_cast<float const*>(in[kD]);
    params.deltaBias = static_cast<float const*>(in[kDeltaBias]);
    params.y = static_cast<T*>(y);
    params.batch = desc[kB].dims.d[0];
    params.channels = desc[kA].dims.d[0];
    params.groups = desc[kB].dims.d[1];
    params.states = desc[kB].dims.d[2];
    params.length = desc[kB].dims.d[3];
    params.deltaSoftplus = deltaSoftplus;
    return runSelectiveScan(params, stream);
}

// Reads one field into `deltaSoftplus`; "" or what is wrong with it.
std::string readField(PluginField const& field, bool& deltaSoftplus) {
    std::string const name = field.name ? field.name : "(no name)";
    if (name != "delta_softplus") {
        return "SelectiveScan: unknown attribute " + name + "; it has delta_softplus alone";
    }
    if (field.type != PluginFieldType::kINT32 || field.length != 1 || !field.data) {
        return "SelectiveScan: expected delta_softplus to be one INT32, found type " +
               std::to_string(static_cast<int32_t>(field.type)) + " of length " + std::to_string(field.length);
    }
    int32_t const value = *static_cast<int32_t const*>(field.data);
    if (value != 0 && value != 1) {
        return "SelectiveScan: expected delta_softplus to be 0 or 1, found " + std::to_string(value);
    }
    deltaSoftplus = value == 1;
    return "";
}

} // namespace

SelectiveScanPlugin::SelectiveScanPlugin(bool deltaSoftplus) noexcept
    : mDeltaSoftplus(deltaSoftplus ? 1 : 0),
      mFields{{PluginField("delta_softplus", &mDeltaSoftplus, PluginFieldType::kINT32, 1)}},
      mCollection{static_cast<int32_t>(mFields.size()), mFields.data()} {}

IPluginCapability* SelectiveScanPlugin::getCapabilityInterface(PluginCapabilityType type) noexcept {
    switch (type) {
    case PluginCapabilityType::kCORE:
        return static_cast<IPluginV3OneCore*>(this);
    case PluginCapabilityType::kBUILD:
        return static_cast<IPluginV3OneBuild*>(this);
    case PluginCapabilityType::kRUNTIME:
        return static_cast<IPluginV3OneRuntime*>(this);
    }
    return nullptr;
}

IPluginV3* SelectiveScanPlugin::clone() noexcept {
    return guarded<IPluginV3*>("SelectiveScan: cloning failed", nullptr,
                               [this] { return new SelectiveScanPlugin(mDeltaSoftplus == 1); });
}

IPluginV3* SelectiveScanPlugin::attachToContext(IPluginResourceContext*) noexcept { return clone(); }

int32_t SelectiveScanPlugin::getOutputDataTypes(DataType* outputTypes, int32_t nbOutputs, DataType const* inputTypes,
                                                int32_t nbInputs) const noexcept {
    return guarded<int32_t>("SelectiveScan: output types failed", kFailure, [&] {
        if (checkCounts(nbInputs, nbOutputs) != kSuccess) {
            return kFailure;
        }
        outputTypes[0] = inputTypes[kU];
        return kSuccess;
    });
}

int32_t SelectiveScanPlugin::getOutputShapes(DimsExprs const* inputs, int32_t nbInputs, DimsExprs const*, int32_t,
                                             DimsExprs* outputs, int32_t nbOutputs, IExprBuilder&) noexcept {
    return guarded<int32_t>("SelectiveScan: output shapes failed", kFailure, [&] {
        if (checkCounts(nbInputs, nbOutputs) != kSuccess) {
            return kFailure;
        }
        if (inputs[kU].nbDims != 3) {
            logError("SelectiveScan: expected u [B, D, L], found " + std::to_string(inputs[kU].nbDims) + " dimensions");
            return kFailure;
        }
        outputs[0] = inputs[kU];
        return kSuccess;
    });
}

bool SelectiveScanPlugin::supportsFormatCombination(int32_t pos, DynamicPluginTensorDesc const* inOut, int32_t nbInputs,
                                                    int32_t nbOutputs) noexcept {
    return guarded<bool>("SelectiveScan: checking formats failed", false, [&] {
        if (checkCounts(nbInputs, nbOutputs) != kSuccess || pos < 0 || pos >= kScanTensors) {
            return false;
        }
        PluginTensorDesc const& desc = inOut[pos].desc;
        if (isParameter(pos)) {
            return isLinear(desc, DataType::kFLOAT);
        }
        if (pos == kU) {
            return isLinear(desc, DataType::kFLOAT) || isLinear(desc, DataType::kHALF);
        }
        return isLinear(desc, inOut[kU].desc.type);
    });
}

int32_t SelectiveScanPlugin::configurePlugin(DynamicPluginTensorDesc const* in, int32_t nbInputs,
                                             DynamicPluginTensorDesc const* out, int32_t nbOutputs) noexcept {
    return guarded<int32_t>("SelectiveScan: configuring failed", kFailure, [&] {
        if (checkCounts(nbInputs, nbOutputs) != kSuccess) {
            return kFailure;
        }
        return checkDims(dimsOf<DynamicPluginTensorDesc>(
            in, out, [](DynamicPluginTensorDesc const& tensor) -> Dims const& { return tensor.desc.dims; }));
    });
}

size_t SelectiveScanPlugin::getWorkspaceSize(DynamicPluginTensorDesc const*, int32_t, DynamicPluginTensorDesc const*,
                                             int32_t) const noexcept {
    return 0;
}

char const* SelectiveScanPlugin::getTimingCacheID() noexcept { return getMetadataString(); }

char const* SelectiveScanPlugin::getMetadataString() noexcept {
    return mDeltaSoftplus ? "delta_softplus=1" : "delta_softplus=0";
}

int32_t SelectiveScanPlugin::onShapeChange(PluginTensorDesc const* in, int32_t nbInputs, PluginTensorDesc const* out,
                                           int32_t nbOutputs) noexcept {
    return guarded<int32_t>("SelectiveScan: taking new shapes failed", kFailure, [&] {
        if (checkCounts(nbInputs, nbOutputs) != kSuccess) {
            return kFailure;
        }
        return checkDims(dimsOf<PluginTensorDesc>(
            in, out, [](PluginTensorDesc const& tensor) -> Dims const& { return tensor.dims; }));
    });
}

int32_t SelectiveScanPlugin::enqueue(PluginTensorDesc const* inputDesc, PluginTensorDesc const*,
                                     void const* const* inputs, void* const* outputs, void*,
                                     cudaStream_t stream) noexcept {
    return guarded<int32_t>("SelectiveScan: launching failed", kFailure, [&] {
        DataType const type = inputDesc[kU].type;
        bool const softplusOn = mDeltaSoftplus == 1;
        cudaError_t error = cudaErrorInvalidValue;
        if (type == DataType::kFLOAT) {
            error = run<float>(inputDesc, inputs, outputs[0], softplusOn, stream);
        } else if (type == DataType::kHALF) {
            error = run<__half>(inputDesc, inputs, outputs[0], softplusOn, stream);
        }
        if (error == cudaSuccess) {
            return kSuccess;
        }
        logError(std::string("SelectiveScan: the kernel did not start: ") + cudaGetErrorString(error));
        return kFailure;
    });
}

PluginFieldCollection const* SelectiveScanPlugin::getFieldsToSerialize() noexcept { return &mCollection; }

SelectiveScanCreator::SelectiveScanCreator() noexcept
    : mFields{{PluginField("delta_softplus", nullptr, PluginFieldType::kINT32, 1)}},
      mCollection{static_cast<int32_t>(mFields.size()), mFields.data()} {}

IPluginV3* SelectiveScanCreator::createPlugin(AsciiChar const*, PluginFieldCollection const* fields,
                                              TensorRTPhase) noexcept {
    return guarded<IPluginV3*>("SelectiveScan: creating the plugin failed", nullptr, [&]() -> IPluginV3* {
        bool deltaSoftplus = true;
        int32_t const count = fields ? fields->nbFields : 0;
        for (int32_t i = 0; i < count; ++i) {
            std::string const problem = readField(fields->fields[i], deltaSoftplus);
            if (!problem.empty()) {
                logError(problem);
                return nullptr;
            }
        }
        return new SelectiveScanPlugin(deltaSoftplus);
    });
}

} // namespace mtmamba
