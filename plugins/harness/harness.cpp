#include "harness/harness.h"

#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

using namespace nvinfer1;

namespace {

thread_local std::string lastError;    // for mtmambaHarnessError
thread_local std::string pluginsWords; // what the plugin said since the call into the harness

void keepMessage(int32_t severity, char const* message) {
    if (severity <= static_cast<int32_t>(ILogger::Severity::kWARNING)) {
        pluginsWords += (pluginsWords.empty() ? "" : "; ") + std::string(message);
    }
}

[[noreturn]] void fail(std::string const& message) { throw std::runtime_error(message); }

// With the plugin's own words, where it said any.
[[noreturn]] void refuse(std::string const& what) { fail(pluginsWords.empty() ? what : pluginsWords); }

// Runs `body`; where it throws, keeps the reason and returns `failure`.
template <typename Result, typename Body> Result guarded(Result failure, Body&& body) noexcept {
    pluginsWords.clear();
    try {
        return body();
    } catch (std::exception const& error) {
        lastError = error.what();
    } catch (...) {
        lastError = "an unknown exception";
    }
    return failure;
}

// A dimension of an input: its size is known, so a plugin that passes it on to its output has nothing to compute.
class Size final : public IDimensionExpr {
  public:
    explicit Size(int64_t size) : value(size) {}
    int64_t const value;
};

template <typename Capability> Capability& capability(IPluginV3& plugin, PluginCapabilityType type, char const* name) {
    auto* const found = static_cast<Capability*>(plugin.getCapabilityInterface(type));
    if (!found) {
        refuse(std::string("the plugin has no capability for ") + name);
    }
    return *found;
}

IPluginV3OneBuild& buildPart(IPluginV3& plugin) {
    return capability<IPluginV3OneBuild>(plugin, PluginCapabilityType::kBUILD, "building");
}

IPluginV3OneRuntime& runtimePart(IPluginV3& plugin) {
    return capability<IPluginV3OneRuntime>(plugin, PluginCapabilityType::kRUNTIME, "running");
}

PluginTensorDesc descOf(MtmambaHarnessTensor const& tensor) {
    PluginTensorDesc desc{};
    if (tensor.rank < 0 || tensor.rank > Dims::MAX_DIMS) {
        fail("expected a tensor of 0 to 8 dimensions, found " + std::to_string(tensor.rank));
    }
    desc.type = static_cast<DataType>(tensor.type);
    desc.format = TensorFormat::kLINEAR;
    desc.dims.nbDims = tensor.rank;
    for (int32_t axis = 0; axis < tensor.rank; ++axis) {
        desc.dims.d[axis] = tensor.dims[axis];
    }
    return desc;
}

} // namespace

struct MtmambaHarness {
    explicit MtmambaHarness(char const* path) : library(dlopen(path, RTLD_NOW | RTLD_LOCAL), &dlclose) {
        if (!library) {
            fail(dlerror());
        }
        setLogCallback = symbol<void (*)(void (*)(int32_t, char const*))>("mtmambaSetLogCallback");
        setLogCallback(&keepMessage);
        int32_t count = 0;
        auto const list = symbol<IPluginCreatorInterface* const* (*)(int32_t&)>("getCreators")(count);
        for (int32_t i = 0; i < count; ++i) {
            creators.push_back(static_cast<IPluginCreatorV3One*>(list[i]));
        }
    }

    ~MtmambaHarness() { setLogCallback(nullptr); }
    MtmambaHarness(MtmambaHarness const&) = delete;
    MtmambaHarness& operator=(MtmambaHarness const&) = delete;

    template <typename Function> Function symbol(char const* name) const {
        void* const found = dlsym(library.get(), name);
        if (!found) {
            fail(std::string("expected the mtmamba plugin library, found one without ") + name);
        }
        return reinterpret_cast<Function>(found);
    }

    IPluginCreatorV3One& creator(std::string const& op) const {
        std::string known;
        for (IPluginCreatorV3One* const candidate : creators) {
            if (op == candidate->getPluginName()) {
                return *candidate;
            }
            known += (known.empty() ? "" : ", ") + std::string(candidate->getPluginName());
        }
        fail("expected a creator for " + op + ", found those for " + known);
    }

    std::unique_ptr<void, int (*)(void*)> library;
    void (*setLogCallback)(void (*)(int32_t, char const*)) = nullptr;
    std::vector<IPluginCreatorV3One*> creators;
};

struct MtmambaHarnessPlugin {
    MtmambaHarnessPlugin(MtmambaHarness const& harness, char const* op, std::vector<PluginField> const& fields,
                         std::vector<PluginTensorDesc> const& given)
        : inputs(given) {
        IPluginCreatorV3One& creator = harness.creator(op);
        PluginFieldCollection const collection{static_cast<int32_t>(fields.size()), fields.data()};
        auto const original =
            owned(creator.createPlugin("harness", &collection, TensorRTPhase::kBUILD), "createPlugin");
        auto const built = owned(original->clone(), "clone"); // a network keeps a clone
        IPluginV3OneBuild& build = buildPart(*built);
        output.format = TensorFormat::kLINEAR;
        askOutput(build);
        askFormats(build);
        configure(build);
        PluginFieldCollection const* const serialised = runtimePart(*built).getFieldsToSerialize();
        auto const loaded = owned(creator.createPlugin("harness", serialised, TensorRTPhase::kRUNTIME), "createPlugin");
        attached = owned(runtimePart(*loaded).attachToContext(nullptr), "attachToContext");
        int32_t const count = static_cast<int32_t>(inputs.size());
        if (runtimePart(*attached).onShapeChange(inputs.data(), count, &output, 1) != 0) {
            refuse("the plugin refused the shapes in onShapeChange");
        }
    }

    static std::unique_ptr<IPluginV3> owned(IPluginV3* plugin, char const* call) {
        if (!plugin) {
            refuse(std::string(call) + " answered no plugin");
        }
        return std::unique_ptr<IPluginV3>(plugin);
    }

    void askOutput(IPluginV3OneBuild& build) {
        int32_t const count = static_cast<int32_t>(inputs.size());
        std::vector<DataType> types;
        std::vector<DimsExprs> shapes(inputs.size());
        std::vector<std::unique_ptr<Size>> sizes;
        for (size_t i = 0; i < inputs.size(); ++i) {
            types.push_back(inputs[i].type);
            shapes[i].nbDims = inputs[i].dims.nbDims;
            for (int32_t axis = 0; axis < shapes[i].nbDims; ++axis) {
                sizes.push_back(std::make_unique<Size>(inputs[i].dims.d[axis]));
                shapes[i].d[axis] = sizes.back().get();
            }
        }
        DimsExprs shape{};
        class : public IExprBuilder {
        } expressions;
        if (build.getOutputDataTypes(&output.type, 1, types.data(), count) != 0 ||
            build.getOutputShapes(shapes.data(), count, nullptr, 0, &shape, 1, expressions) != 0) {
            refuse("the plugin refused the inputs");
        }
        output.dims.nbDims = shape.nbDims;
        for (int32_t axis = 0; axis < shape.nbDims; ++axis) {
            output.dims.d[axis] = static_cast<Size const*>(shape.d[axis])->value;
        }
    }

    // TensorRT asks position by position, inputs first.
    void askFormats(IPluginV3OneBuild& build) const {
        auto const tensors = dynamic();
        int32_t const count = static_cast<int32_t>(inputs.size());
        for (int32_t position = 0; position <= count; ++position) {
            if (!build.supportsFormatCombination(position, tensors.data(), count, 1)) {
                refuse("the plugin does not take type " +
                       std::to_string(static_cast<int32_t>(tensors[static_cast<size_t>(position)].desc.type)) +
                       " as tensor " + std::to_string(position));
            }
        }
    }

    void configure(IPluginV3OneBuild& build) {
        auto const tensors = dynamic();
        int32_t const count = static_cast<int32_t>(inputs.size());
        if (build.configurePlugin(tensors.data(), count, &tensors.back(), 1) != 0) {
            refuse("the plugin refused the shapes in configurePlugin");
        }
        workspaceBytes = build.getWorkspaceSize(tensors.data(), count, &tensors.back(), 1);
    }

    // All tensors, the output last, as a builder describes them: here the smallest and largest are the one size.
    std::vector<DynamicPluginTensorDesc> dynamic() const {
        std::vector<DynamicPluginTensorDesc> tensors;
        for (PluginTensorDesc const& desc : inputs) {
            tensors.push_back({desc, desc.dims, desc.dims, desc.dims});
        }
        tensors.push_back({output, output.dims, output.dims, output.dims});
        return tensors;
    }

    std::vector<PluginTensorDesc> inputs;
    PluginTensorDesc output{};
    size_t workspaceBytes = 0;
    std::unique_ptr<IPluginV3> attached;
};

#define MTMAMBA_EXPORT extern "C" __attribute__((visibility("default")))

MTMAMBA_EXPORT char const* mtmambaHarnessError(void) { return lastError.c_str(); }

MTMAMBA_EXPORT MtmambaHarness* mtmambaHarnessOpen(char const* library) {
    return guarded<MtmambaHarness*>(nullptr, [&] { return new MtmambaHarness(library); });
}

MTMAMBA_EXPORT void mtmambaHarnessClose(MtmambaHarness* harness) { delete harness; }

MTMAMBA_EXPORT MtmambaHarnessPlugin* mtmambaHarnessCreate(MtmambaHarness* harness, char const* op,
                                                          MtmambaHarnessAttribute const* attributes,
                                                          int32_t attributeCount, MtmambaHarnessTensor const* inputs,
                                                          int32_t inputCount) {
    return guarded<MtmambaHarnessPlugin*>(nullptr, [&] {
        std::vector<PluginField> fields;
        for (int32_t i = 0; i < attributeCount; ++i) {
            fields.emplace_back(attributes[i].name, &attributes[i].value, PluginFieldType::kINT32, 1);
        }
        std::vector<PluginTensorDesc> given;
        for (int32_t i = 0; i < inputCount; ++i) {
            given.push_back(descOf(inputs[i]));
        }
        return new MtmambaHarnessPlugin(*harness, op, fields, given);
    });
}

MTMAMBA_EXPORT void mtmambaHarnessDestroy(MtmambaHarnessPlugin* plugin) { delete plugin; }

MTMAMBA_EXPORT MtmambaHarnessTensor mtmambaHarnessOutput(MtmambaHarnessPlugin const* plugin) {
    MtmambaHarnessTensor tensor{static_cast<int32_t>(plugin->output.type), plugin->output.dims.nbDims, {}};
    for (int32_t axis = 0; axis < tensor.rank; ++axis) {
        tensor.dims[axis] = plugin->output.dims.d[axis];
    }
    return tensor;
}

MTMAMBA_EXPORT int64_t mtmambaHarnessWorkspaceBytes(MtmambaHarnessPlugin const* plugin) {
    return static_cast<int64_t>(plugin->workspaceBytes);
}

MTMAMBA_EXPORT int32_t mtmambaHarnessEnqueue(MtmambaHarnessPlugin* plugin, void const* const* inputs, void* output,
                                             void* workspace, void* stream) {
    return guarded<int32_t>(-1, [&]() -> int32_t {
        if (runtimePart(*plugin->attached)
                .enqueue(plugin->inputs.data(), &plugin->output, inputs, &output, workspace,
                         static_cast<cudaStream_t>(stream)) != 0) {
            refuse("the plugin's enqueue failed");
        }
        return 0;
    });
}
