#pragma once

#include "common/op.h"

namespace mtmamba {
extern Op const kSelectiveScan;
} // namespace mtmamba
