// The kernel's own recurrence, compiled for the host, against the float64 truth.
#include "scan_reference.h"

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

template <typename T> void check(std::string const& name, Inputs<T> const& inputs, std::vector<T> const& y) {
    Truth const truth = makeTruth(inputs);
    compare(y, truth, name);
    if constexpr (std::is_same_v<T, __half>) {
        compareWithRounding(y, truth, name);
    }
}

// Every instance of the recurrence that can take the case's number of states.
template <typename T> void testType(std::string const& type) {
    forEachCase<T>([&](std::string const& name, Inputs<T> const& inputs) {
        int64_t const states = inputs.sizes.states;
        if (states == 16) {
            check(type + ", 16 exact, " + name, inputs, runWith<T, 16, true>(inputs));
        }
        if (states <= 16) {
            check(type + ", up to 16, " + name, inputs, runWith<T, 16, false>(inputs));
        }
        check(type + ", up to 64, " + name, inputs, runWith<T, 64, false>(inputs));
    });
    checkIsolation<T>([](Inputs<T> const& inputs) { return runWith<T, 16, true>(inputs); });
    checkIsolation<T>([](Inputs<T> const& inputs) { return runWith<T, 64, false>(inputs); });
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

} // namespace

int main() {
    testByHand();
    testType<float>("fp32");
    testType<__half>("fp16");
    return check::finish();
}
