// SelectiveScan2D version 1, as plugins/ops.yaml has it.
#pragma once

#include "common/op.h"
#include "kernels/step.h"

namespace mtmamba {

namespace scan2d {
enum Tensor : int32_t { kX, kXDbl, kDtWeight, kDtBias, kA, kD, kY };
}

constexpr OpSpec kSelectiveScan2DSpec{
    "SelectiveScan2D",
    scan2d::kY,
    {{{"x", "B,G,D,H,W", false},
      {"x_dbl", "B,G,K,R+2N,H,W", false},
      {"dt_weight", "G,K,D,R", true},
      {"dt_bias", "G,K,D", true},
      {"A", "G,K,D,N", true},
      {"D", "G,K,D", true},
      {"y", "B,G,H,W,D", false}}},
    {},
    0,
    {{{'N', 1, kMaxStates}, {'K', kDirections, kDirections}}},
    0,
    0,
};

} // namespace mtmamba
