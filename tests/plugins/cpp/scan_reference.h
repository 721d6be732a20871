// The float64 truth of the selective scan, its first-order error bound, and the cases every implementation is held to.
#pragma once

#include <cuda_fp16.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "check.h"
#include "kernels/selective_scan.cuh"

namespace reference {

constexpr double kEps32 = 5.97e-8; // half a unit in the last place of float32

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

// The magnitudes of a case. Everything is drawn from a normal distribution, delta around `deltaMean`.
struct Scales {
    double u = 1, deltaMean = 0, delta = 1, BC = 1, A = 1, D = 1;
    bool fixedA = false; // every A is -A, rather than -A * exp(normal)
};

template <typename T> T rounded(double value) {
    if constexpr (std::is_same_v<T, float>) {
        return static_cast<float>(value);
    } else {
        return __float2half_rn(static_cast<float>(value));
    }
}

template <typename T> Inputs<T> makeInputs(Sizes const& sizes, Scales const& scales, unsigned seed) {
    std::mt19937_64 generator(seed);
    std::normal_distribution<double> normal;
    auto const fill = [&](auto& values, int64_t count, double mean, double scale) {
        using Value = typename std::decay_t<decltype(values)>::value_type;
        values.resize(static_cast<size_t>(count));
        for (auto& value : values) {
            value = rounded<Value>(mean + scale * normal(generator));
        }
    };
    Inputs<T> inputs;
    inputs.sizes = sizes;
    auto const [batch, channels, groups, states, length] = sizes;
    fill(inputs.u, batch * channels * length, 0, scales.u);
    fill(inputs.delta, batch * channels * length, scales.deltaMean, scales.delta);
    fill(inputs.B, batch * groups * states * length, 0, scales.BC);
    fill(inputs.C, batch * groups * states * length, 0, scales.BC);
    fill(inputs.D, channels, 0, scales.D);
    fill(inputs.deltaBias, channels, 0, 1);
    inputs.A.resize(static_cast<size_t>(channels * states));
    for (float& a : inputs.A) {
        a = static_cast<float>(-scales.A * (scales.fixedA ? 1 : std::exp(normal(generator))));
    }
    return inputs;
}

// y in float64, and how far a float32 evaluation may stray from it, one value per element of y.
struct Truth {
    std::vector<double> y, bound;
};

inline double softplus(double x) { return x > 0 ? x + std::log1p(std::exp(-x)) : std::log1p(std::exp(x)); }

// One channel. The bound follows every rounding of the float32 evaluation to first order: `H` is the sum of magnitudes
// that went into a state, `E` the error it may have gathered.
template <typename T> void truthOfChannel(Inputs<T> const& in, int64_t b, int64_t c, Truth& truth) {
    auto const [batch, channels, groups, states, length] = in.sizes;
    int64_t const group = b * groups + c / (channels / groups);
    std::vector<double> h(static_cast<size_t>(states)), H(h.size()), E(h.size());
    for (int64_t t = 0; t < length; ++t) {
        size_t const at = static_cast<size_t>((b * channels + c) * length + t);
        double const u = mtmamba::toFloat(in.u[at]);
        double const bias = in.deltaBias[static_cast<size_t>(c)];
        double const raw = mtmamba::toFloat(in.delta[at]);
        double const d = in.deltaSoftplus ? softplus(raw + bias) : raw + bias;
        // Rounding delta + bias moves d by that much absolutely, evaluating softplus by a few units relatively.
        double const dError = kEps32 * (std::abs(raw) + std::abs(bias) + 8 * std::abs(d));
        double const skip = in.D[static_cast<size_t>(c)] * u;
        double sum = 0, magnitude = 0, error = 0;
        for (int64_t n = 0; n < states; ++n) {
            size_t const i = static_cast<size_t>(n);
            size_t const bc = static_cast<size_t>((group * states + n) * length + t);
            double const A = in.A[static_cast<size_t>(c * states + n)];
            double const B = mtmamba::toFloat(in.B[bc]);
            double const C = mtmamba::toFloat(in.C[bc]);
            double const decay = std::exp(d * A);
            double const added = d * u * B;
            double const decayError = decay * (std::abs(A) * dError + kEps32 * (std::abs(d * A) + 4));
            E[i] = decay * E[i] + decayError * H[i] + dError * std::abs(u * B) + 4 * kEps32 * std::abs(added);
            h[i] = decay * h[i] + added;
            H[i] = decay * H[i] + std::abs(added);
            E[i] += 2 * kEps32 * H[i];
            sum += C * h[i];
            magnitude += std::abs(C) * H[i];
            error += std::abs(C) * E[i];
        }
        truth.y[at] = sum + skip;
        double const terms = static_cast<double>(states) + 2;
        // The last term: subnormals, which a sum may lose whole.
        truth.bound[at] = error + terms * kEps32 * (magnitude + std::abs(skip)) + 1e-37;
    }
}

template <typename T> Truth makeTruth(Inputs<T> const& in) {
    size_t const count = in.u.size();
    Truth truth{std::vector<double>(count), std::vector<double>(count)};
    for (int64_t b = 0; b < in.sizes.batch; ++b) {
        for (int64_t c = 0; c < in.sizes.channels; ++c) {
            truthOfChannel(in, b, c, truth);
        }
    }
    return truth;
}

// Half a unit in the last place of T at `value`.
template <typename T> double rounding(double value) {
    int exponent = 0;
    std::frexp(value, &exponent);
    bool const half = std::is_same_v<T, __half>;
    return std::ldexp(1.0, std::max(exponent, half ? -13 : -125) - (half ? 12 : 25));
}

// Every element must lie within the bound and at most twice the rounding of the output's type. Past FP16's range it
// must be the infinity of the right sign. `y` came in filled with NaN, so that an element never written fails.
template <typename T> void compare(std::vector<T> const& y, Truth const& truth, std::string const& name) {
    int bad = 0;
    double worst = 0;
    double const limit = std::is_same_v<T, __half> ? 65504.0 : double(std::numeric_limits<float>::max());
    for (size_t i = 0; i < y.size(); ++i) {
        double const got = mtmamba::toFloat(y[i]);
        double const want = truth.y[i];
        double const allowed = truth.bound[i] + (std::is_same_v<T, __half> ? 2 * rounding<T>(want) : rounding<T>(want));
        bool const mayOverflow = std::abs(want) + allowed >= limit;
        bool const overflowed = std::isinf(got) && (got > 0) == (want > 0);
        bool const good = (mayOverflow && overflowed) || std::abs(got - want) <= allowed;
        bad += !good;
        if (std::isfinite(got)) {
            worst = std::max(worst, std::abs(got - want) / allowed);
        }
        if (!good && bad <= 3) {
            std::printf("  %s [%zu]: expected %.9g +- %.3g, found %.9g\n", name.c_str(), i, want, allowed, got);
        }
    }
    std::printf("%-44s worst error / allowed %.3f\n", name.c_str(), worst);
    CHECK_NOTE(bad == 0, name + ": " + std::to_string(bad) + " of " + std::to_string(y.size()));
}

// The largest error of FP16 tensors against that of plainly rounding the truth to FP16: at most twice (infinities
// apart).
inline void compareWithRounding(std::vector<__half> const& y, Truth const& truth, std::string const& name) {
    double error = 0, plain = 0;
    for (size_t i = 0; i < y.size(); ++i) {
        double const got = mtmamba::toFloat(y[i]);
        double const straight = mtmamba::toFloat(rounded<__half>(truth.y[i]));
        if (std::isfinite(got) && std::isfinite(straight)) {
            error = std::max(error, std::abs(got - truth.y[i]));
            plain = std::max(plain, std::abs(straight - truth.y[i]));
        }
    }
    CHECK_NOTE(error <= 2 * plain,
               name + ": error " + std::to_string(error) + ", of rounding " + std::to_string(plain));
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

template <typename T> std::vector<T> filledWithNaN(size_t count) {
    return std::vector<T>(count, rounded<T>(std::numeric_limits<double>::quiet_NaN()));
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
        int64_t changed = 0, poisoned = 0;
        for (int64_t i = 0; i < static_cast<int64_t>(found.size()); ++i) {
            double const value = mtmamba::toFloat(found[static_cast<size_t>(i)]);
            int64_t const channel = i / clean.sizes.length;
            // A is shared by the images of a batch, so the second image's channel is the victim too.
            if (channel % clean.sizes.channels == victim) {
                poisoned += !std::isfinite(value);
            } else {
                changed += value != mtmamba::toFloat(expected[static_cast<size_t>(i)]);
            }
        }
        CHECK_NOTE(changed == 0, std::to_string(changed) + " values of other channels changed");
        CHECK_NOTE(poisoned > 0, "the poison vanished");
    }
}

} // namespace reference
