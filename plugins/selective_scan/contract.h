// SelectiveScan version 1, as plugins/ops.yaml has it.
#pragma once

#include "common/op.h"
#include "kernels/step.h"

namespace mtmamba {

namespace scan {
enum Tensor : int32_t { kU, kDelta, kA, kB, kC, kD, kDeltaBias, kY };
}

constexpr OpSpec kSelectiveScanSpec{
    "SelectiveScan",
    scan::kY,
    {{{"u", "B,D,L", false},
      {"delta", "B,D,L", false},
      {"A", "D,N", true},
      {"B", "B,G,N,L", false},
      {"C", "B,G,N,L", false},
      {"D", "D", true},
      {"delta_bias", "D", true},
      {"y", "B,D,L", false}}},
    {{{"delta_softplus", 1, 0, 1}}},
    1,
    {{{'N', 1, kMaxStates}, {}}},
    'D',
    'G',
};

} // namespace mtmamba
