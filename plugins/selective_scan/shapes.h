// Which dimensions SelectiveScan takes.
#pragma once

#include <NvInferRuntime.h>

#include <array>
#include <string>

namespace mtmamba {

enum ScanTensor : int32_t { kU, kDelta, kA, kB, kC, kD, kDeltaBias, kY };
constexpr int32_t kScanInputs = 7;
constexpr int32_t kScanTensors = 8; // with the output
constexpr std::array<char const*, kScanTensors> kScanTensorNames{"u", "delta", "A", "B", "C", "D", "delta_bias", "y"};

using ScanDims = std::array<nvinfer1::Dims, kScanTensors>;

// "" where the dimensions agree with each other and the contract, else a sentence: what was expected, what was found.
// A dimension of -1 (not known yet) agrees with everything.
std::string checkScanDims(ScanDims const& dims);

} // namespace mtmamba
