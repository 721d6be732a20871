#include "common/plugin.h"

#include "common/log.h"

namespace mtmamba {

using namespace nvinfer1;

namespace {

constexpr int32_t kSuccess = 0;
constexpr int32_t kFailure = -1;

bool isLinear(PluginTensorDesc const& desc, DataType type) {
    return desc.format == TensorFormat::kLINEAR && desc.type == type;
}

Dims const& dimsIn(PluginTensorDesc const& desc) { return desc.dims; }
Dims const& dimsIn(DynamicPluginTensorDesc const& desc) { return desc.desc.dims; }

// The dimensions of all inputs and the output.
template <typename Desc> OpDims dimsOf(OpSpec const& spec, Desc const* in, Desc const* out) {
    OpDims dims{};
    for (int32_t i = 0; i < spec.inputs; ++i) {
        dims[static_cast<size_t>(i)] = dimsIn(in[i]);
    }
    dims[static_cast<size_t>(spec.inputs)] = dimsIn(out[0]);
    return dims;
}

std::string range(AttributeSpec const& attribute) {
    return std::to_string(attribute.lowest) + (attribute.highest - attribute.lowest == 1 ? " or " : " to ") +
           std::to_string(attribute.highest);
}

// Reads one field into `values`; "" or what is wrong with it.
std::string readField(OpSpec const& spec, PluginField const& field, AttributeValues& values) {
    std::string const op = std::string(spec.name) + ": ";
    std::string const name = field.name ? field.name : "(no name)";
    std::string known;
    for (int32_t i = 0; i < spec.attributeCount; ++i) {
        AttributeSpec const& attribute = spec.attributes[static_cast<size_t>(i)];
        known += (i ? ", " : "") + std::string(attribute.name);
        if (name != attribute.name) {
            continue;
        }
        if (field.type != PluginFieldType::kINT32 || field.length != 1 || !field.data) {
            return op + "expected " + name + " to be one INT32, found type " +
                   std::to_string(static_cast<int32_t>(field.type)) + " of length " + std::to_string(field.length);
        }
        int32_t const value = *static_cast<int32_t const*>(field.data);
        if (value < attribute.lowest || value > attribute.highest) {
            return op + "expected " + name + " to be " + range(attribute) + ", found " + std::to_string(value);
        }
        values[static_cast<size_t>(i)] = value;
        return "";
    }
    return op + "unknown attribute " + name + "; " + (known.empty() ? "it has none" : "it has " + known + " alone");
}

std::vector<PluginField> fieldsFor(OpSpec const& spec, AttributeValues const* values) {
    std::vector<PluginField> fields;
    for (int32_t i = 0; i < spec.attributeCount; ++i) {
        size_t const at = static_cast<size_t>(i);
        fields.emplace_back(spec.attributes[at].name, values ? &(*values)[at] : nullptr, PluginFieldType::kINT32, 1);
    }
    return fields;
}

std::string textFor(OpSpec const& spec, AttributeValues const& values) {
    std::string text = std::string(spec.name) + " " + kVersion;
    for (int32_t i = 0; i < spec.attributeCount; ++i) {
        size_t const at = static_cast<size_t>(i);
        text += " " + std::string(spec.attributes[at].name) + "=" + std::to_string(values[at]);
    }
    return text;
}

} // namespace

OpPlugin::OpPlugin(Op const& op, AttributeValues const& values)
    : mOp(op), mValues(values), mText(textFor(op.spec, values)), mFields(fieldsFor(op.spec, &mValues)),
      mCollection{static_cast<int32_t>(mFields.size()), mFields.data()} {}

IPluginCapability* OpPlugin::getCapabilityInterface(PluginCapabilityType type) noexcept {
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

IPluginV3* OpPlugin::clone() noexcept {
    return guarded<IPluginV3*>(mOp.spec.name, nullptr, [this] { return new OpPlugin(mOp, mValues); });
}

IPluginV3* OpPlugin::attachToContext(IPluginResourceContext*) noexcept { return clone(); }

bool OpPlugin::countsAgree(int32_t nbInputs, int32_t nbOutputs) const {
    if (nbInputs == mOp.spec.inputs && nbOutputs == 1) {
        return true;
    }
    logError(std::string(mOp.spec.name) + ": expected " + std::to_string(mOp.spec.inputs) +
             " inputs and 1 output, found " + std::to_string(nbInputs) + " and " + std::to_string(nbOutputs));
    return false;
}

int32_t OpPlugin::checked(OpDims const& dims) const {
    std::string const problem = checkDims(mOp.spec, dims);
    if (problem.empty()) {
        return kSuccess;
    }
    logError(problem);
    return kFailure;
}

int32_t OpPlugin::getOutputDataTypes(DataType* outputTypes, int32_t nbOutputs, DataType const* inputTypes,
                                     int32_t nbInputs) const noexcept {
    return guarded<int32_t>(mOp.spec.name, kFailure, [&] {
        if (!countsAgree(nbInputs, nbOutputs)) {
            return kFailure;
        }
        outputTypes[0] = inputTypes[0];
        return kSuccess;
    });
}

// Every dimension of the output is one of an input's.
int32_t OpPlugin::getOutputShapes(DimsExprs const* inputs, int32_t nbInputs, DimsExprs const*, int32_t,
                                  DimsExprs* outputs, int32_t nbOutputs, IExprBuilder&) noexcept {
    return guarded<int32_t>(mOp.spec.name, kFailure, [&] {
        if (!countsAgree(nbInputs, nbOutputs)) {
            return kFailure;
        }
        OpSpec const& spec = mOp.spec;
        for (int32_t i = 0; i < spec.inputs; ++i) {
            if (inputs[i].nbDims != rankOf(spec, i)) {
                logError(std::string(spec.name) + ": expected " + spec.tensors[static_cast<size_t>(i)].name + " [" +
                         spec.tensors[static_cast<size_t>(i)].dims + "], found " + std::to_string(inputs[i].nbDims) +
                         " dimensions");
                return kFailure;
            }
        }
        outputs[0].nbDims = rankOf(spec, spec.inputs);
        for (int32_t axis = 0; axis < outputs[0].nbDims; ++axis) {
            char const symbol = dimText(spec, spec.inputs, axis)[0];
            for (int32_t i = spec.inputs - 1; i >= 0; --i) {
                int32_t const from = axisOf(spec, i, symbol);
                outputs[0].d[axis] = from >= 0 ? inputs[i].d[from] : outputs[0].d[axis];
            }
        }
        return kSuccess;
    });
}

bool OpPlugin::supportsFormatCombination(int32_t pos, DynamicPluginTensorDesc const* inOut, int32_t nbInputs,
                                         int32_t nbOutputs) noexcept {
    return guarded<bool>(mOp.spec.name, false, [&] {
        if (!countsAgree(nbInputs, nbOutputs) || pos < 0 || pos >= mOp.spec.tensorCount()) {
            return false;
        }
        PluginTensorDesc const& desc = inOut[pos].desc;
        if (mOp.spec.tensors[static_cast<size_t>(pos)].float32) {
            return isLinear(desc, DataType::kFLOAT);
        }
        bool const known = withType(desc.type, false, [](auto) { return true; });
        return known && isLinear(desc, inOut[0].desc.type);
    });
}

int32_t OpPlugin::configurePlugin(DynamicPluginTensorDesc const* in, int32_t nbInputs,
                                  DynamicPluginTensorDesc const* out, int32_t nbOutputs) noexcept {
    return guarded<int32_t>(mOp.spec.name, kFailure, [&] {
        return countsAgree(nbInputs, nbOutputs) ? checked(dimsOf(mOp.spec, in, out)) : kFailure;
    });
}

size_t OpPlugin::getWorkspaceSize(DynamicPluginTensorDesc const* in, int32_t nbInputs, DynamicPluginTensorDesc const*,
                                  int32_t) const noexcept {
    return guarded<size_t>(mOp.spec.name, 0, [&]() -> size_t {
        OpDims smallest{}, largest{};
        for (int32_t i = 0; i < mOp.spec.inputs && i < nbInputs; ++i) {
            smallest[static_cast<size_t>(i)] = in[i].min;
            largest[static_cast<size_t>(i)] = in[i].max;
        }
        return mOp.workspaceBytes(in[0].desc.type, smallest.data(), largest.data());
    });
}

int32_t OpPlugin::onShapeChange(PluginTensorDesc const* in, int32_t nbInputs, PluginTensorDesc const* out,
                                int32_t nbOutputs) noexcept {
    return guarded<int32_t>(mOp.spec.name, kFailure, [&] {
        return countsAgree(nbInputs, nbOutputs) ? checked(dimsOf(mOp.spec, in, out)) : kFailure;
    });
}

int32_t OpPlugin::enqueue(PluginTensorDesc const* inputDesc, PluginTensorDesc const*, void const* const* inputs,
                          void* const* outputs, void* workspace, cudaStream_t stream) noexcept {
    return guarded<int32_t>(mOp.spec.name, kFailure, [&] {
        cudaError_t const error = mOp.launch({inputDesc, inputs, outputs[0], workspace, mValues, stream});
        if (error == cudaSuccess) {
            return kSuccess;
        }
        logError(std::string(mOp.spec.name) + ": the kernel did not start: " + cudaGetErrorString(error));
        return kFailure;
    });
}

OpCreator::OpCreator(Op const& op)
    : mOp(op), mFields(fieldsFor(op.spec, nullptr)), mCollection{static_cast<int32_t>(mFields.size()), mFields.data()} {
}

IPluginV3* OpCreator::createPlugin(AsciiChar const*, PluginFieldCollection const* fields, TensorRTPhase) noexcept {
    return guarded<IPluginV3*>(mOp.spec.name, nullptr, [&]() -> IPluginV3* {
        AttributeValues values{};
        for (int32_t i = 0; i < mOp.spec.attributeCount; ++i) {
            values[static_cast<size_t>(i)] = mOp.spec.attributes[static_cast<size_t>(i)].standard;
        }
        int32_t const count = fields ? fields->nbFields : 0;
        for (int32_t i = 0; i < count; ++i) {
            std::string const problem = readField(mOp.spec, fields->fields[i], values);
            if (!problem.empty()) {
                logError(problem);
                return nullptr;
            }
        }
        return new OpPlugin(mOp, values);
    });
}

} // namespace mtmamba
