// The float64 truth of the recurrence with its first-order error bound, and comparing a result with it.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "check.h"
#include "kernels/types.cuh"

namespace reference {

constexpr double kEps32 = 5.97e-8; // half a unit in the last place of float32

// bits: of the significand, the leading one included. lowest: frexp's exponent of the smallest normal number.
struct Format {
    int bits, lowest;
    double largest;
};

template <typename T> constexpr Format formatOf() {
    if (std::is_same_v<T, __half>) {
        return {11, -13, 65504.0};
    }
    return {std::is_same_v<T, float> ? 24 : 8, -125, static_cast<double>(std::numeric_limits<float>::max())};
}

template <typename T> T rounded(double value) {
    T result;
    mtmamba::store(&result, static_cast<float>(value));
    return result;
}

template <typename T> std::vector<T> filledWithNaN(size_t count) {
    return std::vector<T>(count, rounded<T>(std::numeric_limits<double>::quiet_NaN()));
}

// Normally distributed values, already rounded to the type under test.
class Filler {
  public:
    explicit Filler(unsigned seed) : mGenerator(seed) {}

    template <typename T> void operator()(std::vector<T>& values, int64_t count, double mean, double scale) {
        values.resize(static_cast<size_t>(count));
        for (T& value : values) {
            value = rounded<T>(mean + scale * mNormal(mGenerator));
        }
    }

    // -scale * exp(normal), or all of them -scale.
    void negative(std::vector<float>& values, int64_t count, double scale, bool fixed) {
        values.resize(static_cast<size_t>(count));
        for (float& value : values) {
            value = static_cast<float>(-scale * (fixed ? 1 : std::exp(mNormal(mGenerator))));
        }
    }

  private:
    std::mt19937_64 mGenerator;
    std::normal_distribution<double> mNormal;
};

// y in float64, and how far a float32 evaluation may stray from it, one value per element of y.
struct Truth {
    std::vector<double> y, bound;

    explicit Truth(size_t count) : y(count), bound(count) {}
};

inline double softplus(double x) { return x > 0 ? x + std::log1p(std::exp(-x)) : std::log1p(std::exp(x)); }

// One token of one channel. rawError: how far, in units of kEps32, the float32 step before softplus may be off.
struct Token {
    double u, raw, rawError;
};

// The recurrence of one channel, token by token. The bound follows every rounding of the float32 evaluation to first
// order: `H` is the sum of magnitudes that went into a state, `E` the error it may have gathered.
class Recurrence {
  public:
    Recurrence(std::vector<double> A, double skip, bool deltaSoftplus)
        : mA(std::move(A)), mSkip(skip), mSoftplus(deltaSoftplus), mh(mA.size()), mH(mA.size()), mE(mA.size()) {}

    // y, its bound, and the sum of |C h|.
    struct Output {
        double y, bound, magnitude;
    };

    // B and C hold a value for every state.
    Output step(Token const& token, std::vector<double> const& B, std::vector<double> const& C) {
        double const d = mSoftplus ? softplus(token.raw) : token.raw;
        // Evaluating softplus: a few units, relatively.
        double const dError = kEps32 * (token.rawError + 8 * std::abs(d));
        double const skip = mSkip * token.u;
        double sum = 0, magnitude = 0, error = 0, products = 0;
        for (size_t n = 0; n < mA.size(); ++n) {
            double const exponent = d * mA[n];
            double const decay = std::exp(exponent);
            double const added = d * token.u * B[n];
            double const decayError = decay * (std::abs(mA[n]) * dError + kEps32 * (std::abs(exponent) + 4));
            mE[n] =
                decay * mE[n] + decayError * mH[n] + dError * std::abs(token.u * B[n]) + 4 * kEps32 * std::abs(added);
            mh[n] = decay * mh[n] + added;
            mH[n] = decay * mH[n] + std::abs(added);
            mE[n] += 2 * kEps32 * mH[n];
            sum += C[n] * mh[n];
            products += std::abs(C[n] * mh[n]);
            magnitude += std::abs(C[n]) * mH[n];
            error += std::abs(C[n]) * mE[n];
        }
        double const terms = static_cast<double>(mA.size()) + 2;
        // The last term: subnormals, which a sum may lose whole.
        return {sum + skip, error + terms * kEps32 * (magnitude + std::abs(skip)) + 1e-37, products};
    }

  private:
    std::vector<double> mA;
    double mSkip;
    bool mSoftplus;
    std::vector<double> mh, mH, mE;
};

// Half a unit in the last place of T at `value`.
template <typename T> double rounding(double value) {
    int exponent = 0;
    std::frexp(value, &exponent);
    Format const format = formatOf<T>();
    return std::ldexp(1.0, std::max(exponent, format.lowest) - format.bits - 1);
}

// Every element must lie within the bound and at most twice the rounding of the output's type. Past the type's range it
// must be the infinity of the right sign. `y` came in filled with NaN, so that an element never written fails.
template <typename T> void compare(std::vector<T> const& y, Truth const& truth, std::string const& name) {
    int bad = 0;
    double worst = 0;
    double const units = std::is_same_v<T, float> ? 1 : 2;
    for (size_t i = 0; i < y.size(); ++i) {
        double const got = mtmamba::toFloat(y[i]);
        double const want = truth.y[i];
        double const allowed = truth.bound[i] + units * rounding<T>(want);
        bool const mayOverflow = std::abs(want) + allowed >= formatOf<T>().largest;
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

// The largest error of low-precision tensors against that of plainly rounding the truth: at most twice (infinities
// apart).
template <typename T> void compareWithRounding(std::vector<T> const& y, Truth const& truth, std::string const& name) {
    double error = 0, plain = 0;
    for (size_t i = 0; i < y.size(); ++i) {
        double const got = mtmamba::toFloat(y[i]);
        double const straight = mtmamba::toFloat(rounded<T>(truth.y[i]));
        if (std::isfinite(got) && std::isfinite(straight)) {
            error = std::max(error, std::abs(got - truth.y[i]));
            plain = std::max(plain, std::abs(straight - truth.y[i]));
        }
    }
    CHECK_NOTE(error <= 2 * plain,
               name + ": error " + std::to_string(error) + ", of rounding " + std::to_string(plain));
}

template <typename T> void compareAll(std::vector<T> const& y, Truth const& truth, std::string const& name) {
    compare(y, truth, name);
    if constexpr (!std::is_same_v<T, float>) {
        compareWithRounding(y, truth, name);
    }
}

// Counts where `found` differs from `expected` outside the victims, and where it is not finite within them.
template <typename T, typename IsVictim>
void checkPoison(std::vector<T> const& expected, std::vector<T> const& found, IsVictim const& isVictim) {
    int64_t changed = 0, poisoned = 0;
    for (size_t i = 0; i < found.size(); ++i) {
        double const value = mtmamba::toFloat(found[i]);
        if (isVictim(static_cast<int64_t>(i))) {
            poisoned += !std::isfinite(value);
        } else {
            changed += value != mtmamba::toFloat(expected[i]);
        }
    }
    CHECK_NOTE(changed == 0, std::to_string(changed) + " values of other channels changed");
    CHECK_NOTE(poisoned > 0, "the poison vanished");
}

} // namespace reference
