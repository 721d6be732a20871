#include "selective_scan/shapes.h"

#include <cstdint>

#include "kernels/selective_scan.cuh"

namespace mtmamba {
namespace {

using nvinfer1::Dims;

constexpr int64_t kUnknown = -1;

std::string text(Dims const& dims) {
    std::string result = "[";
    for (int32_t i = 0; i < dims.nbDims && i < Dims::MAX_DIMS; ++i) {
        result += (i ? ", " : "") + std::to_string(dims.d[i]);
    }
    return result + "]";
}

// One dimension of the contract: a letter that means the same number wherever it stands.
struct Symbol {
    char letter;
    int64_t value = kUnknown;
};

// The letters of every tensor, in the order of ScanTensor.
constexpr std::array<char const*, kScanTensors> kLayouts{"BDL", "BDL", "DN", "BGNL", "BGNL", "D", "D", "BDL"};

std::string mismatch(int32_t tensor, Dims const& found, std::string const& why) {
    std::string layout;
    for (char const* letter = kLayouts[tensor]; *letter; ++letter) {
        layout += (layout.empty() ? "" : ", ") + std::string(1, *letter);
    }
    return std::string("SelectiveScan: expected ") + kScanTensorNames[tensor] + " [" + layout + "], found " +
           text(found) + ": " + why;
}

// Takes the value of one dimension, or says how it disagrees with what is known already.
std::string bind(Symbol& symbol, int64_t value) {
    if (value == kUnknown) {
        return "";
    }
    if (value < 1) {
        return std::string(1, symbol.letter) + " must be at least 1";
    }
    if (symbol.value != kUnknown && symbol.value != value) {
        return std::string(1, symbol.letter) + " is " + std::to_string(symbol.value) + " in the tensors before it";
    }
    symbol.value = value;
    return "";
}

} // namespace

std::string checkScanDims(ScanDims const& dims) {
    std::array<Symbol, 5> symbols{{{'B'}, {'D'}, {'L'}, {'N'}, {'G'}}};
    auto const find = [&symbols](char letter) -> Symbol& {
        for (Symbol& symbol : symbols) {
            if (symbol.letter == letter) {
                return symbol;
            }
        }
        return symbols[0];
    };
    for (int32_t tensor = 0; tensor < kScanTensors; ++tensor) {
        std::string const layout = kLayouts[tensor];
        Dims const& found = dims[tensor];
        if (found.nbDims != static_cast<int32_t>(layout.size())) {
            return mismatch(tensor, found, "wrong number of dimensions");
        }
        for (int32_t i = 0; i < found.nbDims; ++i) {
            std::string const why = bind(find(layout[i]), found.d[i]);
            if (!why.empty()) {
                return mismatch(tensor, found, why);
            }
        }
    }
    int64_t const channels = find('D').value;
    int64_t const groups = find('G').value;
    if (channels != kUnknown && groups != kUnknown && channels % groups != 0) {
        return "SelectiveScan: expected channels D to be a multiple of groups G, found D = " +
               std::to_string(channels) + ", G = " + std::to_string(groups);
    }
    if (find('N').value > kMaxStates) {
        return "SelectiveScan: expected 1 to " + std::to_string(kMaxStates) + " states N, found " +
               std::to_string(find('N').value);
    }
    return "";
}

} // namespace mtmamba
