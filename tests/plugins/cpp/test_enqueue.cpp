// What enqueue refuses before it reaches a GPU.
#include <array>

#include "library.h"

namespace {

using namespace library;

std::vector<PluginTensorDesc> descsOf(std::vector<Dims> const& dims, DataType type) {
    std::vector<PluginTensorDesc> descs;
    for (Dims const& one : dims) {
        PluginTensorDesc desc{};
        desc.dims = one;
        desc.type = type;
        desc.format = TensorFormat::kLINEAR;
        descs.push_back(desc);
    }
    return descs;
}

int32_t enqueue(IPluginV3& plugin, std::vector<PluginTensorDesc> const& tensors) {
    std::vector<void const*> const inputs(tensors.size());
    float place = 0; // never written: nothing here may start a kernel
    void* output = &place;
    return runtime(plugin)->enqueue(tensors.data(), &tensors.back(), inputs.data(), &output, nullptr, nullptr);
}

std::vector<Dims> scanDims(int64_t states) {
    Dims const sequence{3, {2, 40, 77}}, projected{4, {2, 4, states, 77}}, channels{1, {40}};
    return {sequence, sequence, Dims{2, {40, states}}, projected, projected, channels, channels, sequence};
}

std::vector<Dims> mapDims(int64_t states) {
    Dims const rows{3, {2, 4, 40}};
    return {Dims{5, {1, 2, 40, 7, 11}},  Dims{6, {1, 2, 4, 3 + 2 * states, 7, 11}},
            Dims{4, {2, 4, 40, 3}},      rows,
            Dims{4, {2, 4, 40, states}}, rows,
            Dims{5, {1, 2, 7, 11, 40}}};
}

// A type that is not supported, a number of states that no kernel has, and no scratch memory where some is needed.
void testRefusals(Library& lib) {
    auto const scan = lib.create("SelectiveScan"), map = lib.create("SelectiveScan2D");
    auto const refused = [&](IPluginV3& plugin, std::vector<Dims> const& dims, DataType type, char const* op) {
        CHECK(enqueue(plugin, descsOf(dims, type)) != 0);
        std::string const said = lib.logger.take();
        CHECK_NOTE(contains(said, std::string(op) + ": the kernel did not start: invalid argument"), said);
    };
    refused(*scan, scanDims(16), DataType::kINT8, "SelectiveScan");
    refused(*scan, scanDims(65), DataType::kFLOAT, "SelectiveScan");
    refused(*map, mapDims(16), DataType::kINT8, "SelectiveScan2D");
    refused(*map, mapDims(65), DataType::kFLOAT, "SelectiveScan2D");
    refused(*map, mapDims(16), DataType::kHALF, "SelectiveScan2D");
}

} // namespace

int main(int argc, char** argv) {
    Library lib(argc, argv);
    testRefusals(lib);
    return check::finish();
}
