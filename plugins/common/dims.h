// Do the dimensions of an operator's tensors agree with its contract and each other?
#pragma once

#include <string>

#include "common/op.h"

namespace mtmamba {

using OpDims = std::array<nvinfer1::Dims, kMaxTensors>;

// "" where they do, else a sentence: what was expected, what was found. A dimension of -1 (not known yet) agrees with
// everything.
std::string checkDims(OpSpec const& spec, OpDims const& dims);

// The position of `symbol` among the dimensions of tensor `tensor`, or -1.
int32_t axisOf(OpSpec const& spec, int32_t tensor, char symbol);

// How many dimensions tensor `tensor` has, and the text of one ("D", "R+2N").
int32_t rankOf(OpSpec const& spec, int32_t tensor);
std::string dimText(OpSpec const& spec, int32_t tensor, int32_t axis);

} // namespace mtmamba
