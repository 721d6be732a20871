// The kernels' own recurrences, compiled for the host, against the float64 truth.
#include "map_cases.h"
#include "scan_cases.h"

namespace {

using namespace reference;

template <typename T, int kStates, bool kExact> std::vector<T> runWith(Inputs<T> const& inputs) {
    std::vector<T> y = filledWithNaN<T>(inputs.u.size());
    auto const params = inputs.params(y.data());
    for (int64_t b = 0; b < params.batch; ++b) {
        for (int64_t c = 0; c < params.channels; ++c) {
            mtmamba::scanChannel<T, kStates, kExact>(params, b, c);
        }
    }
    return y;
}

// Every instance of the recurrence that can take the case's number of states.
template <typename T> void testType(std::string const& type) {
    forEachCase<T>([&](std::string const& name, Inputs<T> const& inputs) {
        int64_t const states = inputs.sizes.states;
        Truth const truth = makeTruth(inputs);
        if (states == 16) {
            compareAll(runWith<T, 16, true>(inputs), truth, type + ", 16 exact, " + name);
        }
        if (states <= 16) {
            compareAll(runWith<T, 16, false>(inputs), truth, type + ", up to 16, " + name);
        }
        compareAll(runWith<T, 64, false>(inputs), truth, type + ", up to 64, " + name);
    });
    checkIsolation<T>([](Inputs<T> const& inputs) { return runWith<T, 16, true>(inputs); });
    checkIsolation<T>([](Inputs<T> const& inputs) { return runWith<T, 64, false>(inputs); });
}

template <typename T, int kStates, bool kExact> std::vector<T> runMapWith(MapInputs<T> const& inputs) {
    std::vector<T> y = filledWithNaN<T>(inputs.outputs());
    std::vector<float> sums = filledWithNaN<float>(std::is_same_v<T, float> ? 0 : y.size());
    float* where = sums.data();
    if constexpr (std::is_same_v<T, float>) {
        where = y.data();
    }
    auto const params = inputs.params(y.data(), where);
    for (int64_t image = 0; image < params.batch * params.groups; ++image) {
        for (int64_t c = 0; c < params.channels; ++c) {
            mtmamba::scanMap<T, kStates, kExact>(params, image / params.groups, image % params.groups, c);
        }
    }
    return y;
}

template <typename T> void testMapType(std::string const& type) {
    forEachMapCase<T>([&](std::string const& name, MapInputs<T> const& inputs) {
        int64_t const states = inputs.sizes.states;
        Truth const truth = makeTruth(inputs);
        if (states == 16) {
            compareAll(runMapWith<T, 16, true>(inputs), truth, "2D " + type + ", 16 exact, " + name);
        }
        if (states <= 16) {
            compareAll(runMapWith<T, 16, false>(inputs), truth, "2D " + type + ", up to 16, " + name);
        }
        compareAll(runMapWith<T, 64, false>(inputs), truth, "2D " + type + ", up to 64, " + name);
    });
    checkMapIsolation<T>([](MapInputs<T> const& inputs) { return runMapWith<T, 16, true>(inputs); });
}

// By hand: N = 1, D = 0, A = -ln 2, d = 1 gives h = 1, 1.5, 1.75 for u = B = 1.
void testByHand() {
    Inputs<float> inputs;
    inputs.sizes = {1, 1, 1, 1, 3};
    inputs.deltaSoftplus = false;
    inputs.u = {1, 1, 1};
    inputs.delta = {0.5F, 0.5F, 0.5F};
    inputs.deltaBias = {0.5F};
    inputs.B = {1, 1, 1};
    inputs.C = {1, 2, 4};
    inputs.A = {-0.69314718F};
    inputs.D = {10};
    std::vector<float> const y = runWith<float, 16, false>(inputs);
    CHECK(std::abs(y[0] - 11.F) < 1e-5F);
    CHECK(std::abs(y[1] - 13.F) < 1e-5F);
    CHECK(std::abs(y[2] - 17.F) < 1e-5F);
}

// By hand: A = 0 and softplus(0) = ln 2 make the state a running sum; a 2x2 map of 1, 2, 4, 8 scanned in four orders.
void testMapByHand() {
    MapInputs<float> inputs;
    inputs.sizes = {1, 1, 1, 2, 2, 1, 1};
    inputs.x = {1, 2, 4, 8};
    for (int k = 0; k < mtmamba::kDirections; ++k) {
        inputs.xDbl.insert(inputs.xDbl.end(), {0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1}); // low, B, C
    }
    inputs.dtWeight = {1, 1, 1, 1};
    inputs.dtBias = inputs.A = inputs.D = {0, 0, 0, 0};
    std::vector<float> const y = runMapWith<float, 16, false>(inputs);
    // Rows 1, 3, 7, 15; columns 1, 7, 5, 15; rows reversed 15, 14, 12, 8; columns reversed 15, 10, 14, 8.
    float const expected[] = {1 + 1 + 15 + 15, 3 + 7 + 14 + 10, 7 + 5 + 12 + 14, 15 + 15 + 8 + 8};
    for (size_t i = 0; i < 4; ++i) {
        CHECK_NOTE(std::abs(y[i] - 0.69314718F * expected[i]) < 1e-4F, std::to_string(y[i]));
    }
}

} // namespace

int main() {
    testByHand();
    testMapByHand();
    testType<float>("fp32");
    testType<__half>("fp16");
    testType<__nv_bfloat16>("bf16");
    testMapType<float>("fp32");
    testMapType<__half>("fp16");
    testMapType<__nv_bfloat16>("bf16");
    return check::finish();
}
