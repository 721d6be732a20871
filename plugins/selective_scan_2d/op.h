#pragma once

#include "common/op.h"

namespace mtmamba {
extern Op const kSelectiveScan2D;
} // namespace mtmamba
