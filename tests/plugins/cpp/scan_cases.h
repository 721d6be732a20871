// SelectiveScan: inputs, the float64 truth, and the cases every implementation is held to.
#pragma once

#include <tuple>

#include "kernels/selective_scan.cuh"
#include "reference.h"

namespace reference {

struct Sizes {
    int64_t batch = 2, channels = 40, groups = 4, states = 16, length = 77;
};

// Values of every tensor, already rounded to the type under test.
template <typename T> struct Inputs {
    Sizes sizes;
    bool deltaSoftplus = true;
    std::vector<T> u, delta, B, C;
    std::vector<float> A, D, deltaBias;

    mtmamba::SelectiveScanParams<T> params(T* y) const {
        return {u.data(), delta.data(), A.data(),       B.data(),     C.data(),     D.data(),     deltaBias.data(),
                y,        sizes.batch,  sizes.channels, sizes.groups, sizes.states, sizes.length, deltaSoftplus};
    }
};

// The magnitudes of a case, of either operator. Everything is drawn from a normal distribution, delta around
// `deltaMean`.
struct Scales {
    double u = 1, deltaMean = 0, delta = 1, BC = 1, A = 1, D = 1;
    bool fixedA = false; // every A is -A, rather than -A * exp(normal)
};

template <typename T> Inputs<T> makeInputs(Sizes const& sizes, Scales const& scales, unsigned seed) {
    Filler fill(seed);
    Inputs<T> inputs;
    inputs.sizes = sizes;
    auto const [batch, channels, groups, states, length] = sizes;
    fill(inputs.u, batch * channels * length, 0, scales.u);
    fill(inputs.delta, batch * channels * length, scales.deltaMean, scales.delta);
    fill(inputs.B, batch * groups * states * length, 0, scales.BC);
    fill(inputs.C, batch * groups * states * length, 0, scales.BC);
    fill(inputs.D, channels, 0, scales.D);
    fill(inputs.deltaBias, channels, 0, 1);
    fill.negative(inputs.A, channels * states, scales.A, scales.fixedA);
    return inputs;
}

template <typename T> void truthOfChannel(Inputs<T> const& in, int64_t b, int64_t c, Truth& truth) {
    auto const [batch, channels, groups, states, length] = in.sizes;
    int64_t const group = b * groups + c / (channels / groups);
    auto const A = in.A.begin() + c * states;
    Recurrence recurrence({A, A + states}, in.D[static_cast<size_t>(c)], in.deltaSoftplus);
    std::vector<double> B(static_cast<size_t>(states)), C(B.size());
    double const bias = in.deltaBias[static_cast<size_t>(c)];
    for (int64_t t = 0; t < length; ++t) {
        size_t const at = static_cast<size_t>((b * channels + c) * length + t);
        for (int64_t n = 0; n < states; ++n) {
            size_t const bc = static_cast<size_t>((group * states + n) * length + t);
            B[static_cast<size_t>(n)] = mtmamba::toFloat(in.B[bc]);
            C[static_cast<size_t>(n)] = mtmamba::toFloat(in.C[bc]);
        }
        double const raw = mtmamba::toFloat(in.delta[at]);
        Token const token{mtmamba::toFloat(in.u[at]), raw + bias, std::abs(raw) + std::abs(bias)};
        auto const [y, bound, products] = recurrence.step(token, B, C);
        truth.y[at] = y;
        truth.bound[at] = bound;
    }
}

template <typename T> Truth makeTruth(Inputs<T> const& in) {
    Truth truth(in.u.size());
    for (int64_t b = 0; b < in.sizes.batch; ++b) {
        for (int64_t c = 0; c < in.sizes.channels; ++c) {
            truthOfChannel(in, b, c, truth);
        }
    }
    return truth;
}

// Calls `run(name, inputs)` for a base case and one change a case. `run` fills y and compares it.
template <typename T, typename Run> void forEachCase(Run&& run) {
    unsigned seed = 1;
    auto const one = [&](std::string const& name, Sizes const& sizes, Scales const& scales, bool softplusOn = true) {
        Inputs<T> inputs = makeInputs<T>(sizes, scales, seed++);
        inputs.deltaSoftplus = softplusOn;
        run(name, inputs);
    };
    auto const sized = [](auto change) {
        Sizes sizes;
        change(sizes);
        return sizes;
    };
    auto const scaled = [](auto change) {
        Scales scales;
        change(scales);
        return scales;
    };
    one("base", {}, {});
    for (int64_t length : {1, 2, 31, 1008}) {
        one("length " + std::to_string(length), sized([&](Sizes& s) { s.length = length; }), {});
    }
    for (int64_t states : {1, 3, 15, 17, 64}) {
        one("states " + std::to_string(states), sized([&](Sizes& s) { s.states = states; }), {});
    }
    for (int64_t groups : {1, 20, 40}) {
        one("groups " + std::to_string(groups), sized([&](Sizes& s) { s.groups = groups; }), {});
    }
    one("one channel", {1, 1, 1, 16, 5}, {});
    one("softplus off", {}, scaled([](Scales& s) { s.deltaMean = 6, s.delta = 0.3; }), false);
    one("delta -50", {}, scaled([](Scales& s) { s.deltaMean = -50; }));
    one("delta +50", {}, scaled([](Scales& s) { s.deltaMean = 50; }));
    one("delta +100", {}, scaled([](Scales& s) { s.deltaMean = 100; }));
    // With D u, and with many states, an error of the step is lost among the roundings of a sum.
    Sizes const lone = sized([](Sizes& s) { s.states = 1; });
    one("delta -50, one state, D 0", lone, scaled([](Scales& s) { s.deltaMean = -50, s.D = 0; }));
    one("delta 10, one state, D 0", lone, scaled([](Scales& s) { s.deltaMean = 10, s.delta = 2, s.D = 0; }));
    one("delta around softplus's threshold", {}, scaled([](Scales& s) { s.deltaMean = 20, s.delta = 2; }));
    one("A -1e-4", sized([](Sizes& s) { s.length = 1008; }), scaled([](Scales& s) { s.A = 1e-4, s.fixedA = true; }));
    one("A -1e3", {}, scaled([](Scales& s) { s.A = 1e3, s.fixedA = true; }));
    one("A -1e3, delta -50", {}, scaled([](Scales& s) { s.A = 1e3, s.deltaMean = -50; }));
    one("inputs of 1e4", {}, scaled([](Scales& s) { s.u = 1e4; }));
    one("inputs and B, C of 1e4", {}, scaled([](Scales& s) { s.u = s.BC = 1e4; }));
    one("inputs of 1e-4", {}, scaled([](Scales& s) { s.u = s.BC = 1e-4; }));
}

// Puts `poison` into u, delta and A of channel `victim` and asks that every other channel keeps its exact bits.
template <typename T, typename Run> void checkIsolation(Run&& runAll) {
    Inputs<T> const clean = makeInputs<T>({}, {}, 99);
    std::vector<T> const expected = runAll(clean);
    int64_t const victim = 7;
    for (double poison : {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
        Inputs<T> dirty = clean;
        int64_t const row = victim * clean.sizes.length;
        dirty.u[static_cast<size_t>(row + 3)] = rounded<T>(poison);
        dirty.delta[static_cast<size_t>(row + 5)] = rounded<T>(poison);
        dirty.A[static_cast<size_t>(victim * clean.sizes.states)] = static_cast<float>(poison);
        std::vector<T> const found = runAll(dirty);
        // A is shared by the images of a batch, so the second image's channel is the victim too.
        checkPoison(expected, found,
                    [&](int64_t i) { return i / clean.sizes.length % clean.sizes.channels == victim; });
    }
}

} // namespace reference
