// What examples/cpp uses of TensorRT's ONNX parser, which only TensorRT's own packages have the header of: enough to
// compile the example, not to link it.
#pragma once

#include <NvInfer.h>

namespace nvonnxparser {

class IParser {
  public:
    virtual bool parseFromFile(char const* onnxModelFile, int verbosity) noexcept = 0;
    virtual ~IParser() noexcept = default;
};

IParser* createParser(nvinfer1::INetworkDefinition& network, nvinfer1::ILogger& logger) noexcept;

} // namespace nvonnxparser
