// The plugin library opened the way TensorRT does it, with a logger that keeps what the plugin says.
#pragma once

#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "check.h"

namespace library {

using namespace nvinfer1;

class KeepingLogger final : public ILogger, public ILoggerFinder {
  public:
    void log(Severity severity, AsciiChar const* message) noexcept override {
        severities.push_back(severity);
        messages.emplace_back(message);
    }
    ILogger* findLogger() override { return this; }

    // What came since the last call, as one text.
    std::string take() {
        std::string all;
        for (std::string const& message : messages) {
            all += message + "\n";
        }
        messages.clear();
        return all;
    }

    std::vector<std::string> messages;
    std::vector<Severity> severities;
};

inline bool contains(std::string const& text, std::string const& part) { return text.find(part) != std::string::npos; }

struct Library {
    explicit Library(int argc, char** argv) {
        if (argc != 2) {
            std::puts("usage: test LIBRARY");
            std::exit(2);
        }
        handle = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
        if (!handle) {
            std::printf("cannot open %s: %s\n", argv[1], dlerror());
            std::exit(1);
        }
        symbol<void (*)(ILoggerFinder*)>("setLoggerFinder")(&logger);
        int32_t count = 0;
        auto const list = symbol<IPluginCreatorInterface* const* (*)(int32_t&)>("getCreators")(count);
        for (int32_t i = 0; i < count; ++i) {
            creators.push_back(static_cast<IPluginCreatorV3One*>(list[i]));
        }
    }

    template <typename Function> Function symbol(char const* name) const {
        void* const found = dlsym(handle, name);
        if (!found) {
            std::printf("the library does not export %s\n", name);
            std::exit(1);
        }
        return reinterpret_cast<Function>(found);
    }

    IPluginCreatorV3One& creator(std::string const& op) const {
        for (IPluginCreatorV3One* const candidate : creators) {
            if (op == candidate->getPluginName()) {
                return *candidate;
            }
        }
        std::printf("the library has no creator for %s\n", op.c_str());
        std::exit(1);
    }

    std::unique_ptr<IPluginV3> create(std::string const& op, std::vector<PluginField> const& fields = {},
                                      TensorRTPhase phase = TensorRTPhase::kBUILD) const {
        PluginFieldCollection const collection{static_cast<int32_t>(fields.size()), fields.data()};
        return std::unique_ptr<IPluginV3>(creator(op).createPlugin("test", &collection, phase));
    }

    void* handle = nullptr;
    KeepingLogger logger;
    std::vector<IPluginCreatorV3One*> creators;
};

template <typename Capability> Capability* capability(IPluginV3& plugin, PluginCapabilityType type) {
    return static_cast<Capability*>(plugin.getCapabilityInterface(type));
}

inline IPluginV3OneCore* core(IPluginV3& plugin) {
    return capability<IPluginV3OneCore>(plugin, PluginCapabilityType::kCORE);
}
inline IPluginV3OneBuild* build(IPluginV3& plugin) {
    return capability<IPluginV3OneBuild>(plugin, PluginCapabilityType::kBUILD);
}
inline IPluginV3OneRuntime* runtime(IPluginV3& plugin) {
    return capability<IPluginV3OneRuntime>(plugin, PluginCapabilityType::kRUNTIME);
}

} // namespace library
