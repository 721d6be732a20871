// TensorRT's IPluginV3 around the selective scan kernel.
#pragma once

#include <NvInferRuntime.h>

#include <array>
#include <cstdint>

namespace mtmamba {

constexpr char kScanName[] = "SelectiveScan";
constexpr char kScanVersion[] = "1";
// TensorRT's ONNX parser looks a node's plugin up in the namespace equal to the node's domain.
constexpr char kNamespace[] = "mtmamba";

// Holds one attribute, delta_softplus. u, delta, B, C and y: FP32 or FP16, all alike; A, D, delta_bias: FP32; all
// linear.
class SelectiveScanPlugin final : public nvinfer1::IPluginV3,
                                  public nvinfer1::IPluginV3OneCore,
                                  public nvinfer1::IPluginV3OneBuild,
                                  public nvinfer1::IPluginV3OneRuntime {
  public:
    explicit SelectiveScanPlugin(bool deltaSoftplus) noexcept;

    nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override;
    nvinfer1::IPluginV3* clone() noexcept override;

    nvinfer1::AsciiChar const* getPluginName() const noexcept override { return kScanName; }
    nvinfer1::AsciiChar const* getPluginVersion() const noexcept override { return kScanVersion; }
    nvinfer1::AsciiChar const* getPluginNamespace() const noexcept override { return kNamespace; }

    int32_t getNbOutputs() const noexcept override { return 1; }
    int32_t getOutputDataTypes(nvinfer1::DataType* outputTypes, int32_t nbOutputs, nvinfer1::DataType const* inputTypes,
                               int32_t nbInputs) const noexcept override;
    int32_t getOutputShapes(nvinfer1::DimsExprs const* inputs, int32_t nbInputs, nvinfer1::DimsExprs const* shapeInputs,
                            int32_t nbShapeInputs, nvinfer1::DimsExprs* outputs, int32_t nbOutputs,
                            nvinfer1::IExprBuilder& builder) noexcept override;
    bool supportsFormatCombination(int32_t pos, nvinfer1::DynamicPluginTensorDesc const* inOut, int32_t nbInputs,
                                   int32_t nbOutputs) noexcept override;
    int32_t configurePlugin(nvinfer1::DynamicPluginTensorDesc const* in, int32_t nbInputs,
                            nvinfer1::DynamicPluginTensorDesc const* out, int32_t nbOutputs) noexcept override;
    size_t getWorkspaceSize(nvinfer1::DynamicPluginTensorDesc const* in, int32_t nbInputs,
                            nvinfer1::DynamicPluginTensorDesc const* out, int32_t nbOutputs) const noexcept override;
    char const* getTimingCacheID() noexcept override;
    char const* getMetadataString() noexcept override;

    int32_t onShapeChange(nvinfer1::PluginTensorDesc const* in, int32_t nbInputs, nvinfer1::PluginTensorDesc const* out,
                          int32_t nbOutputs) noexcept override;
    int32_t enqueue(nvinfer1::PluginTensorDesc const* inputDesc, nvinfer1::PluginTensorDesc const* outputDesc,
                    void const* const* inputs, void* const* outputs, void* workspace,
                    cudaStream_t stream) noexcept override;
    nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext* context) noexcept override;
    nvinfer1::PluginFieldCollection const* getFieldsToSerialize() noexcept override;

  private:
    int32_t mDeltaSoftplus; // 0 or 1; the serialised field points here
    std::array<nvinfer1::PluginField, 1> mFields;
    nvinfer1::PluginFieldCollection mCollection;
};

class SelectiveScanCreator final : public nvinfer1::IPluginCreatorV3One {
  public:
    SelectiveScanCreator() noexcept;

    nvinfer1::AsciiChar const* getPluginName() const noexcept override { return kScanName; }
    nvinfer1::AsciiChar const* getPluginVersion() const noexcept override { return kScanVersion; }
    nvinfer1::AsciiChar const* getPluginNamespace() const noexcept override { return kNamespace; }
    nvinfer1::PluginFieldCollection const* getFieldNames() noexcept override { return &mCollection; }
    // Fields: delta_softplus, INT32, 0 or 1, default 1. Any other field, type, length or value is refused (nullptr).
    nvinfer1::IPluginV3* createPlugin(nvinfer1::AsciiChar const* name, nvinfer1::PluginFieldCollection const* fields,
                                      nvinfer1::TensorRTPhase phase) noexcept override;

  private:
    std::array<nvinfer1::PluginField, 1> mFields;
    nvinfer1::PluginFieldCollection mCollection;
};

} // namespace mtmamba
