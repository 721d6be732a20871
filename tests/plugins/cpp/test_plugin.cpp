// Creator, fields, cloning, serialisation, output types and shapes of the real library.
#include <array>
#include <cstring>

#include "library.h"

namespace {

using namespace library;

constexpr int32_t kInputs = 7;
char const* const kScan = "SelectiveScan";
char const* const kScan2D = "SelectiveScan2D";

int32_t softplusOf(IPluginV3& plugin) {
    PluginFieldCollection const* const fields = runtime(plugin)->getFieldsToSerialize();
    CHECK(fields->nbFields == 1);
    PluginField const& field = fields->fields[0];
    CHECK(std::strcmp(field.name, "delta_softplus") == 0);
    CHECK(field.type == PluginFieldType::kINT32 && field.length == 1);
    return *static_cast<int32_t const*>(field.data);
}

void testExports(Library& lib) {
    CHECK(lib.creators.size() == 2);
    int32_t legacy = -1;
    lib.symbol<void* const* (*)(int32_t&)>("getPluginCreators")(legacy);
    CHECK(legacy == 0);
    std::string const hash = lib.symbol<char const* (*)()>("mtmambaPluginHash")();
    CHECK_NOTE(hash.size() == 64 && hash.find_first_not_of("0123456789abcdef") == std::string::npos, hash);
    CHECK(dlsym(lib.handle, "cudaMalloc") == nullptr);
}

std::string& heard() {
    static std::string text;
    return text;
}

// Without a logger finder the host's callback hears what is wrong.
void testCallback(Library& lib) {
    auto const setCallback = lib.symbol<void (*)(void (*)(int32_t, char const*))>("mtmambaSetLogCallback");
    auto const setFinder = lib.symbol<void (*)(ILoggerFinder*)>("setLoggerFinder");
    setCallback([](int32_t severity, char const* message) { heard() += std::to_string(severity) + " " + message; });
    int32_t const two = 2;
    PluginField const bad{"delta_softplus", &two, PluginFieldType::kINT32, 1};
    CHECK(lib.create(kScan, {bad}) == nullptr);
    CHECK(heard().empty() && !lib.logger.take().empty());
    setFinder(nullptr);
    CHECK(lib.create(kScan, {bad}) == nullptr);
    CHECK_NOTE(contains(heard(), "1 SelectiveScan: expected delta_softplus to be 0 or 1"), heard());
    CHECK(lib.logger.take().empty());
    setCallback(nullptr);
    setFinder(&lib.logger);
}

void testCreator(Library& lib) {
    IPluginCreatorV3One& creator = lib.creator(kScan);
    CHECK(std::string(creator.getPluginName()) == "SelectiveScan");
    CHECK(std::string(creator.getPluginVersion()) == "1");
    CHECK(std::string(creator.getPluginNamespace()) == "mtmamba");
    PluginFieldCollection const& fields = *creator.getFieldNames();
    CHECK(fields.nbFields == 1);
    CHECK(std::string(fields.fields[0].name) == "delta_softplus");
    CHECK(fields.fields[0].type == PluginFieldType::kINT32);
}

void testFields(Library& lib) {
    int32_t const off = 0, on = 1, two = 2;
    float const number = 1;
    CHECK(softplusOf(*lib.create(kScan)) == 1);
    CHECK(softplusOf(*lib.create(kScan, {{"delta_softplus", &on, PluginFieldType::kINT32, 1}})) == 1);
    CHECK(softplusOf(*lib.create(kScan, {{"delta_softplus", &off, PluginFieldType::kINT32, 1}})) == 0);
    CHECK(lib.logger.take().empty());

    struct Bad {
        PluginField field;
        char const* sentence;
    };
    Bad const refused[] = {
        {{"delta_softplus", &number, PluginFieldType::kFLOAT32, 1}, "one INT32"},
        {{"delta_softplus", &on, PluginFieldType::kINT64, 1}, "one INT32"},
        {{"delta_softplus", &on, PluginFieldType::kINT32, 2}, "of length 2"},
        {{"delta_softplus", nullptr, PluginFieldType::kINT32, 1}, "one INT32"},
        {{"delta_softplus", &two, PluginFieldType::kINT32, 1}, "0 or 1, found 2"},
        {{"softplus", &on, PluginFieldType::kINT32, 1}, "unknown attribute softplus"},
        {{nullptr, &on, PluginFieldType::kINT32, 1}, "unknown attribute (no name)"},
    };
    for (Bad const& bad : refused) {
        CHECK_NOTE(lib.create(kScan, {bad.field}) == nullptr, bad.sentence);
        std::string const said = lib.logger.take();
        CHECK_NOTE(contains(said, bad.sentence), said);
    }
    for (ILogger::Severity severity : lib.logger.severities) {
        CHECK(severity == ILogger::Severity::kERROR);
    }
    std::unique_ptr<IPluginV3> const none(lib.creator(kScan).createPlugin("test", nullptr, TensorRTPhase::kBUILD));
    CHECK(softplusOf(*none) == 1);
}

// What the plugin serialises makes the same plugin at run time; clones are equal and independent of the original.
void testRoundTrip(Library& lib) {
    for (int32_t softplus : {0, 1}) {
        auto plugin = lib.create(kScan, {{"delta_softplus", &softplus, PluginFieldType::kINT32, 1}});
        std::unique_ptr<IPluginV3> const clone(plugin->clone());
        std::unique_ptr<IPluginV3> const attached(runtime(*plugin)->attachToContext(nullptr));
        std::unique_ptr<IPluginV3> const restored(
            lib.creator(kScan).createPlugin("test", runtime(*plugin)->getFieldsToSerialize(), TensorRTPhase::kRUNTIME));
        plugin.reset();
        for (IPluginV3* copy : {clone.get(), attached.get(), restored.get()}) {
            CHECK(copy != nullptr && softplusOf(*copy) == softplus);
            std::string const expected = "SelectiveScan 1 delta_softplus=" + std::to_string(softplus);
            CHECK(build(*copy)->getMetadataString() == expected);
            CHECK(build(*copy)->getTimingCacheID() == expected);
        }
    }
}

void testCapabilities(Library& lib) {
    auto const plugin = lib.create(kScan);
    CHECK(std::string(core(*plugin)->getPluginName()) == "SelectiveScan");
    CHECK(std::string(core(*plugin)->getPluginVersion()) == "1");
    CHECK(std::string(core(*plugin)->getPluginNamespace()) == "mtmamba");
    CHECK(build(*plugin)->getNbOutputs() == 1);
    CHECK(plugin->getCapabilityInterface(static_cast<PluginCapabilityType>(99)) == nullptr);
}

void testOutputTypes(Library& lib) {
    auto const plugin = lib.create(kScan);
    for (DataType type : {DataType::kFLOAT, DataType::kHALF, DataType::kBF16}) {
        std::array<DataType, kInputs> inputs;
        inputs.fill(DataType::kFLOAT);
        inputs[0] = type;
        DataType output = DataType::kBOOL;
        CHECK(build(*plugin)->getOutputDataTypes(&output, 1, inputs.data(), kInputs) == 0);
        CHECK(output == type);
        CHECK(build(*plugin)->getOutputDataTypes(&output, 1, inputs.data(), kInputs - 1) != 0);
        CHECK(build(*plugin)->getOutputDataTypes(&output, 2, inputs.data(), kInputs) != 0);
    }
    CHECK(contains(lib.logger.take(), "expected 7 inputs and 1 output, found 6 and 1"));
}

// The operator without attributes takes none, keeps none, and names itself in its texts.
void testNoAttributes(Library& lib) {
    CHECK(lib.creator(kScan2D).getFieldNames()->nbFields == 0);
    int32_t const on = 1;
    CHECK(lib.create(kScan2D, {{"delta_softplus", &on, PluginFieldType::kINT32, 1}}) == nullptr);
    CHECK(contains(lib.logger.take(), "SelectiveScan2D: unknown attribute delta_softplus; it has none"));
    auto const plugin = lib.create(kScan2D);
    CHECK(runtime(*plugin)->getFieldsToSerialize()->nbFields == 0);
    CHECK(std::string(build(*plugin)->getMetadataString()) == "SelectiveScan2D 1");
    CHECK(std::string(core(*std::unique_ptr<IPluginV3>(plugin->clone()))->getPluginName()) == kScan2D);
}

} // namespace

int main(int argc, char** argv) {
    Library lib(argc, argv);
    testExports(lib);
    testCallback(lib);
    testCreator(lib);
    testFields(lib);
    testRoundTrip(lib);
    testCapabilities(lib);
    testOutputTypes(lib);
    testNoAttributes(lib);
    return check::finish();
}
