// A model with mtmamba's operators in C++: ONNX to engine with the plugin library, and the engine run.
//
//   scan_engine LIBRARY MODEL.onnx MODEL.engine     parses and builds, writes the engine, runs it
//   scan_engine LIBRARY MODEL.engine                runs an engine that was built before, here or by mtm-build-engine
//
// LIBRARY is libmtmamba_plugins.so. For TensorRT for RTX the ONNX file must hold no bodies of the operators (see
// docs/operators.md), and this file must be compiled with the headers of its own SDK: those of TensorRT lay out its
// interfaces otherwise. Without a GPU nothing is run.
#include <NvInfer.h>
#include <NvOnnxParser.h>
#include <cuda_runtime_api.h>

#include <cstdio>
#include <fstream>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

class Logger final : public nvinfer1::ILogger {
  public:
    void log(Severity severity, nvinfer1::AsciiChar const* message) noexcept override {
        if (severity <= Severity::kWARNING) {
            std::fprintf(stderr, "%s\n", message);
        }
    }
};

void require(bool good, std::string const& what) {
    if (!good) {
        throw std::runtime_error(what);
    }
}

void cuda(cudaError_t status) { require(status == cudaSuccess, cudaGetErrorString(status)); }

// Loads the library and makes sure that its plugins are there: what loadLibrary answers differs between versions.
void loadPlugins(std::string const& library) {
    nvinfer1::IPluginRegistry* const registry = getPluginRegistry();
    registry->loadLibrary(library.c_str());
    for (char const* op : {"SelectiveScan", "SelectiveScan2D"}) {
        require(registry->getCreator(op, "1", "mtmamba") != nullptr, library + ": no plugin for " + op + " in it");
    }
}

int32_t pluginLayers(nvinfer1::INetworkDefinition const& network) {
    int32_t count = 0;
    for (int32_t i = 0; i < network.getNbLayers(); ++i) {
        count += network.getLayer(i)->getType() == nvinfer1::LayerType::kPLUGIN_V3;
    }
    return count;
}

void build(Logger& logger, std::string const& onnx, std::string const& engine) {
    std::unique_ptr<nvinfer1::IBuilder> const builder(nvinfer1::createInferBuilder(logger));
    require(builder != nullptr, "TensorRT could not make a builder");
    // Strongly typed: the types are the file's own. TensorRT for RTX and TensorRT 11 know nothing else.
    uint32_t flags = 0;
#if NV_TENSORRT_MAJOR == 10
    flags = 1U << static_cast<uint32_t>(nvinfer1::NetworkDefinitionCreationFlag::kSTRONGLY_TYPED);
#endif
    std::unique_ptr<nvinfer1::INetworkDefinition> const network(builder->createNetworkV2(flags));
    std::unique_ptr<nvonnxparser::IParser> const parser(nvonnxparser::createParser(*network, logger));
    require(parser->parseFromFile(onnx.c_str(), static_cast<int>(nvinfer1::ILogger::Severity::kWARNING)),
            onnx + ": TensorRT could not parse it");
    int32_t const layers = pluginLayers(*network);
    require(layers > 0, onnx + ": no operator became a plugin; export it without bodies (docs/operators.md)");
    std::unique_ptr<nvinfer1::IBuilderConfig> const config(builder->createBuilderConfig());
    std::unique_ptr<nvinfer1::IHostMemory> const plan(builder->buildSerializedNetwork(*network, *config));
    require(plan != nullptr, onnx + ": TensorRT could not build an engine");
    std::ofstream file(engine, std::ios::binary);
    file.write(static_cast<char const*>(plan->data()), static_cast<std::streamsize>(plan->size()));
    require(file.good(), engine + ": could not be written");
    std::printf("%s: %d plugin layers, %zu bytes\n", engine.c_str(), layers, plan->size());
}

int64_t elements(nvinfer1::Dims const& dims) {
    int64_t count = 1;
    for (int32_t axis = 0; axis < dims.nbDims; ++axis) {
        require(dims.d[axis] > 0, "this example runs engines of fixed sizes");
        count *= dims.d[axis];
    }
    return count;
}

// One run on inputs of zeros. Real programs keep the context, the buffers and the stream, and copy into pinned memory.
void run(Logger& logger, std::string const& path) {
    std::ifstream file(path, std::ios::binary);
    std::vector<char> const plan{std::istreambuf_iterator<char>(file), {}};
    require(!plan.empty(), path + ": could not be read");
    std::unique_ptr<nvinfer1::IRuntime> const runtime(nvinfer1::createInferRuntime(logger));
    std::unique_ptr<nvinfer1::ICudaEngine> const engine(runtime->deserializeCudaEngine(plan.data(), plan.size()));
    require(engine != nullptr, path + ": TensorRT could not load it");
    std::unique_ptr<nvinfer1::IExecutionContext> const context(engine->createExecutionContext());
    require(context != nullptr, path + ": TensorRT could not make a context");
    cudaStream_t stream{};
    cuda(cudaStreamCreate(&stream));
    std::vector<void*> buffers;
    for (int32_t i = 0; i < engine->getNbIOTensors(); ++i) {
        char const* const name = engine->getIOTensorName(i);
        size_t const bytes = static_cast<size_t>(elements(engine->getTensorShape(name))) * sizeof(float);
        buffers.push_back(nullptr);
        cuda(cudaMalloc(&buffers.back(), bytes)); // large enough for every type up to float32
        cuda(cudaMemsetAsync(buffers.back(), 0, bytes, stream));
        require(context->setTensorAddress(name, buffers.back()), std::string(name) + ": TensorRT refused its memory");
    }
    require(context->enqueueV3(stream), path + ": TensorRT could not start it");
    cuda(cudaStreamSynchronize(stream));
    for (int32_t i = 0; i < engine->getNbIOTensors(); ++i) {
        char const* const name = engine->getIOTensorName(i);
        if (engine->getTensorIOMode(name) == nvinfer1::TensorIOMode::kOUTPUT &&
            engine->getTensorDataType(name) == nvinfer1::DataType::kFLOAT) {
            float first = 0;
            cuda(cudaMemcpy(&first, buffers[static_cast<size_t>(i)], sizeof first, cudaMemcpyDeviceToHost));
            std::printf("%s: first value %g\n", name, static_cast<double>(first));
        }
    }
    for (void* const buffer : buffers) {
        cuda(cudaFree(buffer));
    }
    cuda(cudaStreamDestroy(stream));
}

} // namespace

int main(int argc, char** argv) {
    if (argc < 3 || argc > 4) {
        std::fprintf(stderr, "usage: %s LIBRARY MODEL.onnx MODEL.engine, or %s LIBRARY MODEL.engine\n", argv[0],
                     argv[0]);
        return 2;
    }
    try {
        Logger logger;
        loadPlugins(argv[1]);
        std::string const engine = argv[argc - 1];
        if (argc == 4) {
            build(logger, argv[2], engine);
        }
        int gpus = 0;
        if (cudaGetDeviceCount(&gpus) != cudaSuccess || gpus == 0) {
            std::puts("no GPU here: nothing was run");
        } else {
            run(logger, engine);
        }
    } catch (std::exception const& error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
    return 0;
}
