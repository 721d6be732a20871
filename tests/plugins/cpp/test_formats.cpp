// Every data type and tensor format in every position; good and bad shapes; enqueue's refusals.
#include <array>

#include "library.h"

namespace {

using namespace library;

constexpr int32_t kInputs = 7;
constexpr int32_t kTensors = 8;
constexpr int32_t kEnumerators = 16; // of DataType and TensorFormat: more than there are, so that new ones are refused

bool isParameter(int32_t pos) { return pos == 2 || pos == 5 || pos == 6; } // A, D, delta_bias

using Tensors = std::array<DynamicPluginTensorDesc, kTensors>;

PluginTensorDesc descOf(Dims const& dims, DataType type) {
    PluginTensorDesc desc{};
    desc.dims = dims;
    desc.type = type;
    desc.format = TensorFormat::kLINEAR;
    return desc;
}

std::array<PluginTensorDesc, kTensors> plainTensors(DataType type, int64_t length = 77) {
    Dims const sequence{3, {2, 40, length}};
    Dims const projected{4, {2, 4, 16, length}};
    Dims const channels{1, {40}};
    return {descOf(sequence, type),
            descOf(sequence, type),
            descOf(Dims{2, {40, 16}}, DataType::kFLOAT),
            descOf(projected, type),
            descOf(projected, type),
            descOf(channels, DataType::kFLOAT),
            descOf(channels, DataType::kFLOAT),
            descOf(sequence, type)};
}

Tensors dynamicTensors(DataType type) {
    Tensors tensors{};
    auto const plain = plainTensors(type);
    for (size_t i = 0; i < tensors.size(); ++i) {
        tensors[i].desc = plain[i];
        tensors[i].min = tensors[i].opt = tensors[i].max = plain[i].dims;
    }
    return tensors;
}

void testCombinations(Library& lib) {
    auto const plugin = lib.create({});
    int accepted = 0;
    for (DataType base : {DataType::kFLOAT, DataType::kHALF}) {
        for (int32_t pos = 0; pos < kTensors; ++pos) {
            for (int32_t type = 0; type < kEnumerators; ++type) {
                for (int32_t format = 0; format < kEnumerators; ++format) {
                    Tensors tensors = dynamicTensors(base);
                    tensors[pos].desc.type = static_cast<DataType>(type);
                    tensors[pos].desc.format = static_cast<TensorFormat>(format);
                    DataType const given = static_cast<DataType>(type);
                    bool const typeFits = isParameter(pos) ? given == DataType::kFLOAT
                                          : pos == 0       ? given == DataType::kFLOAT || given == DataType::kHALF
                                                           : given == base;
                    bool const expected = typeFits && static_cast<TensorFormat>(format) == TensorFormat::kLINEAR;
                    bool const found = build(*plugin)->supportsFormatCombination(pos, tensors.data(), kInputs, 1);
                    accepted += found;
                    CHECK_NOTE(found == expected, "tensor " + std::to_string(pos) + ", type " + std::to_string(type) +
                                                      ", format " + std::to_string(format));
                }
            }
        }
    }
    CHECK(accepted == 2 * (kTensors + 1)); // one for each tensor, two for u
    CHECK(lib.logger.take().empty());
}

void testCombinationArguments(Library& lib) {
    auto const plugin = lib.create({});
    Tensors const tensors = dynamicTensors(DataType::kFLOAT);
    CHECK(build(*plugin)->supportsFormatCombination(0, tensors.data(), kInputs, 1));
    CHECK(!build(*plugin)->supportsFormatCombination(-1, tensors.data(), kInputs, 1));
    CHECK(!build(*plugin)->supportsFormatCombination(kTensors, tensors.data(), kInputs, 1));
    CHECK(!build(*plugin)->supportsFormatCombination(0, tensors.data(), kInputs - 1, 1));
    CHECK(!build(*plugin)->supportsFormatCombination(0, tensors.data(), kInputs, 2));
    CHECK(contains(lib.logger.take(), "found 7 and 2"));
}

void testShapes(Library& lib) {
    auto const plugin = lib.create({});
    for (DataType type : {DataType::kFLOAT, DataType::kHALF}) {
        Tensors tensors = dynamicTensors(type);
        auto plain = plainTensors(type);
        auto const configure = [&] {
            return build(*plugin)->configurePlugin(tensors.data(), kInputs, &tensors[kInputs], 1);
        };
        auto const change = [&] { return runtime(*plugin)->onShapeChange(plain.data(), kInputs, &plain[kInputs], 1); };
        CHECK(configure() == 0 && change() == 0);
        CHECK(lib.logger.take().empty());
        for (int32_t tensor = 0; tensor < kTensors; ++tensor) {
            Tensors const goodTensors = tensors;
            auto const goodPlain = plain;
            tensors[tensor].desc.dims.d[0] += 1;
            plain[tensor].dims.d[0] += 1;
            CHECK(configure() != 0);
            CHECK(contains(lib.logger.take(), "SelectiveScan: expected"));
            CHECK(change() != 0);
            CHECK(contains(lib.logger.take(), "SelectiveScan: expected"));
            tensors = goodTensors;
            plain = goodPlain;
        }
        tensors[0].desc.dims.d[2] = -1; // not known yet: as good as any
        CHECK(configure() == 0);
        CHECK(build(*plugin)->configurePlugin(tensors.data(), kInputs - 1, &tensors[kInputs], 1) != 0);
        CHECK(runtime(*plugin)->onShapeChange(plain.data(), kInputs, &plain[kInputs], 2) != 0);
        lib.logger.take();
    }
}

// Neither reaches a GPU: a type that is not supported, and a number of states that no kernel has.
void testEnqueueRefuses(Library& lib) {
    auto const plugin = lib.create({});
    std::array<void const*, kInputs> inputs{};
    void* output = nullptr;
    auto const enqueue = [&](std::array<PluginTensorDesc, kTensors> const& tensors) {
        return runtime(*plugin)->enqueue(tensors.data(), &tensors[kInputs], inputs.data(), &output, nullptr, nullptr);
    };
    CHECK(enqueue(plainTensors(DataType::kINT8)) != 0);
    CHECK(contains(lib.logger.take(), "the kernel did not start"));
    auto tensors = plainTensors(DataType::kFLOAT);
    tensors[3].dims.d[2] = 65;
    CHECK(enqueue(tensors) != 0);
    CHECK(contains(lib.logger.take(), "the kernel did not start"));
}

} // namespace

int main(int argc, char** argv) {
    Library lib(argc, argv);
    testCombinations(lib);
    testCombinationArguments(lib);
    testShapes(lib);
    testEnqueueRefuses(lib);
    return check::finish();
}
