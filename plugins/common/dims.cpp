#include "common/dims.h"

#include <cctype>
#include <sstream>
#include <vector>

namespace mtmamba {
namespace {

using nvinfer1::Dims;

constexpr int64_t kUnknown = -1;

// The value of every symbol met so far, by letter.
class Symbols {
  public:
    Symbols() { mValues.fill(kUnknown); }
    int64_t& operator[](char symbol) { return mValues.at(static_cast<size_t>(symbol)); }

    // The value of a sum such as "R+2N", kUnknown where one of its symbols is.
    int64_t sum(std::string const& text) {
        int64_t total = 0, factor = 1;
        for (char const letter : text) {
            if (std::isdigit(static_cast<unsigned char>(letter))) {
                factor = letter - '0';
            } else if (letter != '+') {
                int64_t const value = (*this)[letter];
                if (value == kUnknown) {
                    return kUnknown;
                }
                total += factor * value;
                factor = 1;
            }
        }
        return total;
    }

  private:
    std::array<int64_t, 128> mValues;
};

std::vector<std::string> dimsOf(TensorSpec const& tensor) {
    std::vector<std::string> parts;
    std::istringstream stream(tensor.dims);
    for (std::string part; std::getline(stream, part, ',');) {
        parts.push_back(part);
    }
    return parts;
}

template <typename Part, typename Text> std::string list(int32_t count, Part const& part, Text const& text) {
    std::string result = "[";
    for (int32_t i = 0; i < count; ++i) {
        result += (i ? ", " : "") + text(part(i));
    }
    return result + "]";
}

std::string mismatch(OpSpec const& spec, TensorSpec const& tensor, Dims const& found, std::string const& why) {
    auto const parts = dimsOf(tensor);
    auto const same = [](std::string const& text) { return text; };
    auto const number = [](int64_t value) { return std::to_string(value); };
    int32_t const count = found.nbDims < Dims::MAX_DIMS ? found.nbDims : Dims::MAX_DIMS;
    return std::string(spec.name) + ": expected " + tensor.name + " " +
           list(
               static_cast<int32_t>(parts.size()), [&](int32_t i) { return parts[static_cast<size_t>(i)]; }, same) +
           ", found " + list(count, [&](int32_t i) { return found.d[i]; }, number) + ": " + why;
}

// Takes the value of one symbol, or says how it disagrees with what is known already.
std::string bind(Symbols& symbols, std::string const& text, int64_t value) {
    if (value == kUnknown) {
        return "";
    }
    if (value < 1) {
        return text + " must be at least 1";
    }
    if (text.size() > 1) {
        return ""; // a sum: compared once every symbol is known
    }
    int64_t& known = symbols[text[0]];
    if (known != kUnknown && known != value) {
        return text + " is " + std::to_string(known) + " in the tensors before it";
    }
    known = value;
    return "";
}

std::string checkSums(OpSpec const& spec, OpDims const& dims, Symbols& symbols) {
    for (int32_t i = 0; i < spec.tensorCount(); ++i) {
        TensorSpec const& tensor = spec.tensors[static_cast<size_t>(i)];
        Dims const& found = dims[static_cast<size_t>(i)];
        int32_t axis = 0;
        for (std::string const& text : dimsOf(tensor)) {
            int64_t const value = found.d[axis++];
            int64_t const expected = symbols.sum(text);
            if (value != kUnknown && expected != kUnknown && value != expected) {
                return mismatch(spec, tensor, found,
                                text + " is " + std::to_string(expected) + " by the other tensors");
            }
        }
    }
    return "";
}

std::string checkLimits(OpSpec const& spec, Symbols& symbols) {
    std::string const start = std::string(spec.name) + ": expected ";
    for (Limit const& limit : spec.limits) {
        int64_t const value = limit.symbol ? symbols[limit.symbol] : kUnknown;
        if (value != kUnknown && (value < limit.lowest || value > limit.highest)) {
            std::string const range = limit.lowest == limit.highest ? " = " + std::to_string(limit.highest)
                                                                    : " in " + std::to_string(limit.lowest) + " to " +
                                                                          std::to_string(limit.highest);
            return start + limit.symbol + range + ", found " + std::to_string(value);
        }
    }
    if (spec.multiple) {
        int64_t const value = symbols[spec.multiple], divisor = symbols[spec.divisor];
        if (value != kUnknown && divisor != kUnknown && value % divisor != 0) {
            return start + spec.multiple + " to be a multiple of " + spec.divisor + ", found " + spec.multiple + " = " +
                   std::to_string(value) + ", " + spec.divisor + " = " + std::to_string(divisor);
        }
    }
    return "";
}

} // namespace

std::string checkDims(OpSpec const& spec, OpDims const& dims) {
    Symbols symbols;
    for (int32_t i = 0; i < spec.tensorCount(); ++i) {
        TensorSpec const& tensor = spec.tensors[static_cast<size_t>(i)];
        Dims const& found = dims[static_cast<size_t>(i)];
        auto const parts = dimsOf(tensor);
        if (found.nbDims != static_cast<int32_t>(parts.size())) {
            return mismatch(spec, tensor, found, "wrong number of dimensions");
        }
        for (int32_t axis = 0; axis < found.nbDims; ++axis) {
            std::string const why = bind(symbols, parts[static_cast<size_t>(axis)], found.d[axis]);
            if (!why.empty()) {
                return mismatch(spec, tensor, found, why);
            }
        }
    }
    std::string const sums = checkSums(spec, dims, symbols);
    return sums.empty() ? checkLimits(spec, symbols) : sums;
}

int32_t axisOf(OpSpec const& spec, int32_t tensor, char symbol) {
    for (int32_t axis = 0; axis < rankOf(spec, tensor); ++axis) {
        if (dimText(spec, tensor, axis) == std::string(1, symbol)) {
            return axis;
        }
    }
    return -1;
}

int32_t rankOf(OpSpec const& spec, int32_t tensor) {
    return static_cast<int32_t>(dimsOf(spec.tensors.at(static_cast<size_t>(tensor))).size());
}

std::string dimText(OpSpec const& spec, int32_t tensor, int32_t axis) {
    return dimsOf(spec.tensors.at(static_cast<size_t>(tensor))).at(static_cast<size_t>(axis));
}

} // namespace mtmamba
