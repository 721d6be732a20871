// One operator: its contract (what plugins/ops.yaml says, in C++) and how it is started. One plugin class serves them
// all.
#pragma once

#include <NvInferRuntime.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <array>
#include <cstddef>
#include <cstdint>

namespace mtmamba {

constexpr int32_t kMaxTensors = 8;
constexpr int32_t kMaxAttributes = 1;
constexpr int32_t kMaxLimits = 2;

// dims: symbols with commas between, each the same number wherever it stands, or a sum such as "R+2N".
// float32: of that type always; else of the first input's type, which is FP32, FP16 or BF16.
struct TensorSpec {
    char const* name;
    char const* dims;
    bool float32;
};

// An INT32 of lowest..highest.
struct AttributeSpec {
    char const* name;
    int32_t standard; // where the node does not say
    int32_t lowest;
    int32_t highest;
};

struct Limit {
    char symbol;
    int64_t lowest;
    int64_t highest;
};

struct OpSpec {
    char const* name;
    int32_t inputs;
    std::array<TensorSpec, kMaxTensors> tensors; // the inputs, then the one output
    std::array<AttributeSpec, kMaxAttributes> attributes;
    int32_t attributeCount;
    std::array<Limit, kMaxLimits> limits; // symbol 0: none
    char multiple;                        // a multiple of `divisor`; 0: no such rule
    char divisor;

    constexpr int32_t tensorCount() const { return inputs + 1; }
};

using AttributeValues = std::array<int32_t, kMaxAttributes>;

// What one enqueue knows. tensors: of the inputs.
struct Call {
    nvinfer1::PluginTensorDesc const* tensors;
    void const* const* inputs;
    void* output;
    void* workspace;
    AttributeValues const& attributes;
    cudaStream_t stream;

    int64_t dim(int32_t tensor, int32_t axis) const { return tensors[tensor].dims.d[axis]; }
    template <typename T> T const* input(int32_t tensor) const { return static_cast<T const*>(inputs[tensor]); }
};

struct Op {
    OpSpec spec;
    // Starts the kernels on the call's stream; cudaErrorInvalidValue for a type or size that there is no kernel for.
    cudaError_t (*launch)(Call const& call);
    // Bytes of scratch memory for inputs of this type and of any dimensions between these.
    size_t (*workspaceBytes)(nvinfer1::DataType type, nvinfer1::Dims const* smallest, nvinfer1::Dims const* largest);
};

// Calls run(T{}) for the C++ type of `type`, or answers `otherwise`.
template <typename Result, typename Run> Result withType(nvinfer1::DataType type, Result otherwise, Run const& run) {
    switch (type) {
    case nvinfer1::DataType::kFLOAT:
        return run(float{});
    case nvinfer1::DataType::kHALF:
        return run(__half{});
    case nvinfer1::DataType::kBF16:
        return run(__nv_bfloat16{});
    default:
        return otherwise;
    }
}

} // namespace mtmamba
