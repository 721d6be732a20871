// SelectiveScan2D: inputs, the float64 truth, and the cases every implementation is held to.
#pragma once

#include <tuple>

#include "kernels/selective_scan_2d.cuh"
#include "reference.h"
#include "scan_cases.h"

namespace reference {

struct MapSizes {
    int64_t batch = 2, groups = 2, channels = 20, height = 7, width = 9, rank = 3, states = 16;

    int64_t length() const { return height * width; }
    int64_t rows() const { return groups * mtmamba::kDirections * channels; } // of the parameters
};

// Values of every tensor, already rounded to the type under test.
template <typename T> struct MapInputs {
    MapSizes sizes;
    std::vector<T> x, xDbl;
    std::vector<float> dtWeight, dtBias, A, D;

    mtmamba::SelectiveScan2DParams<T> params(T* y, void* workspace) const {
        return {x.data(),    xDbl.data(), dtWeight.data(), dtBias.data(), A.data(),       D.data(),
                y,           workspace,   sizes.batch,     sizes.groups,  sizes.channels, sizes.height,
                sizes.width, sizes.rank,  sizes.states};
    }
    int64_t workspaceBytes(mtmamba::MapPlan const& plan) const {
        auto const& [batch, groups, channels, height, width, rank, states] = sizes;
        return mtmamba::MapWorkspace<T>(batch, groups, channels, height, width, rank, states, plan).bytes;
    }
    size_t outputs() const { return x.size(); }
};

// `scales.delta` is the low rank's, `deltaMean` the bias's mean.
template <typename T> MapInputs<T> makeMapInputs(MapSizes const& sizes, Scales const& scales, unsigned seed) {
    Filler fill(seed);
    MapInputs<T> in;
    in.sizes = sizes;
    int64_t const images = sizes.batch * sizes.groups, length = sizes.length();
    fill(in.x, images * sizes.channels * length, 0, scales.u);
    std::vector<T> low, BC;
    for (int64_t i = 0; i < images * mtmamba::kDirections; ++i) {
        fill(low, sizes.rank * length, 0, scales.delta);
        fill(BC, 2 * sizes.states * length, 0, scales.BC);
        in.xDbl.insert(in.xDbl.end(), low.begin(), low.end());
        in.xDbl.insert(in.xDbl.end(), BC.begin(), BC.end());
    }
    fill(in.dtWeight, sizes.rows() * sizes.rank, 0, 0.5);
    fill(in.dtBias, sizes.rows(), scales.deltaMean, 1);
    fill(in.D, sizes.rows(), 0, scales.D);
    fill.negative(in.A, sizes.rows() * sizes.states, scales.A, scales.fixedA);
    return in;
}

// For half precision y = C h takes 11 bits of h, cut off, and makes up for the mean of what that loses.
template <typename T> constexpr double kCut = std::is_same_v<T, float> ? 0 : 2.0 / 2048 - 0.72 / 2048;

// The pixels in the order of direction k, made as one would by hand: no arithmetic shared with the kernels.
inline std::vector<int64_t> orderOf(int k, MapSizes const& sizes) {
    std::vector<int64_t> order;
    int64_t const outer = k % 2 ? sizes.width : sizes.height, inner = k % 2 ? sizes.height : sizes.width;
    for (int64_t i = 0; i < outer; ++i) {
        for (int64_t j = 0; j < inner; ++j) {
            order.push_back(k % 2 ? j * sizes.width + i : i * sizes.width + j);
        }
    }
    return k < 2 ? order : std::vector<int64_t>(order.rbegin(), order.rend());
}

// Adds one direction of one channel to the truth.
template <typename T>
void truthOfDirection(MapInputs<T> const& in, int64_t b, int64_t g, int k, int64_t c, Truth& truth) {
    MapSizes const& s = in.sizes;
    int64_t const image = b * s.groups + g, row = (g * mtmamba::kDirections + k) * s.channels + c;
    auto const A = in.A.begin() + row * s.states;
    Recurrence recurrence({A, A + s.states}, in.D[static_cast<size_t>(row)], true);
    std::vector<double> B(static_cast<size_t>(s.states)), C(B.size());
    double const bias = in.dtBias[static_cast<size_t>(row)];
    for (int64_t const pixel : orderOf(k, s)) {
        auto const projected = [&](int64_t feature) {
            int64_t const plane = (image * mtmamba::kDirections + k) * (s.rank + 2 * s.states) + feature;
            return static_cast<double>(mtmamba::toFloat(in.xDbl[static_cast<size_t>(plane * s.length() + pixel)]));
        };
        double raw = bias, magnitude = std::abs(bias);
        for (int64_t r = 0; r < s.rank; ++r) {
            double const part = in.dtWeight[static_cast<size_t>(row * s.rank + r)] * projected(r);
            raw += part;
            magnitude += std::abs(part);
        }
        for (int64_t n = 0; n < s.states; ++n) {
            B[static_cast<size_t>(n)] = projected(s.rank + n);
            C[static_cast<size_t>(n)] = projected(s.rank + s.states + n);
        }
        double const u = mtmamba::toFloat(in.x[static_cast<size_t>((image * s.channels + c) * s.length() + pixel)]);
        Token const token{u, raw, static_cast<double>(s.rank + 1) * magnitude};
        auto const [y, bound, products] = recurrence.step(token, B, C);
        size_t const at = static_cast<size_t>((image * s.length() + pixel) * s.channels + c);
        truth.y[at] += y;
        truth.bound[at] += bound + mtmamba::kDirections * kEps32 * std::abs(y) + kCut<T> * products;
    }
}

template <typename T> Truth makeTruth(MapInputs<T> const& in) {
    Truth truth(in.outputs());
    for (int64_t b = 0; b < in.sizes.batch; ++b) {
        for (int64_t g = 0; g < in.sizes.groups; ++g) {
            for (int64_t c = 0; c < in.sizes.channels; ++c) {
                for (int k = 0; k < mtmamba::kDirections; ++k) {
                    truthOfDirection(in, b, g, k, c, truth);
                }
            }
        }
    }
    return truth;
}

// Calls `run(name, inputs)` for a base case and one change a case.
template <typename T, typename Run> void forEachMapCase(Run&& run) {
    unsigned seed = 1;
    auto const one = [&](std::string const& name, auto changeSizes, auto changeScales) {
        MapSizes sizes;
        Scales scales;
        changeSizes(sizes);
        changeScales(scales);
        run(name, makeMapInputs<T>(sizes, scales, seed++));
    };
    auto const sized = [&](std::string const& name, auto change) { one(name, change, [](Scales&) {}); };
    auto const scaled = [&](std::string const& name, auto change) { one(name, [](MapSizes&) {}, change); };
    sized("base", [](MapSizes&) {});
    for (auto const& [height, width] : {std::pair{1, 1}, {1, 17}, {16, 1}, {2, 2}, {28, 36}}) {
        sized("map " + std::to_string(height) + "x" + std::to_string(width),
              [&, h = height, w = width](MapSizes& s) { s.height = h, s.width = w; });
    }
    for (int64_t states : {1, 3, 15, 17, 64}) {
        sized("states " + std::to_string(states), [&](MapSizes& s) { s.states = states; });
    }
    for (int64_t channels : {1, 16, 33}) {
        sized("channels " + std::to_string(channels), [&](MapSizes& s) { s.channels = channels; });
    }
    sized("one group, one image", [](MapSizes& s) { s.groups = s.batch = 1; });
    sized("20 groups", [](MapSizes& s) { s.groups = 20; });
    sized("rank 1", [](MapSizes& s) { s.rank = 1; });
    sized("rank 48", [](MapSizes& s) { s.rank = 48; });
    sized("rank 70", [](MapSizes& s) { s.rank = 70; });
    scaled("delta -50", [](Scales& s) { s.deltaMean = -50; });
    scaled("delta +50", [](Scales& s) { s.deltaMean = 50; });
    one("delta -50, one state, D 0", [](MapSizes& s) { s.states = 1; }, [](Scales& s) { s.deltaMean = -50, s.D = 0; });
    scaled("A -1e-4", [](Scales& s) { s.A = 1e-4, s.fixedA = true; });
    scaled("A -1e3", [](Scales& s) { s.A = 1e3, s.fixedA = true; });
    scaled("inputs of 1e4", [](Scales& s) { s.u = 1e4; });
    scaled("inputs and B, C of 1e4", [](Scales& s) { s.u = s.BC = 1e4; });
}

// Puts `poison` into x and A of one channel and asks that every other channel keeps its exact bits.
template <typename T, typename Run> void checkMapIsolation(Run&& runAll) {
    MapInputs<T> const clean = makeMapInputs<T>({}, {}, 99);
    std::vector<T> const expected = runAll(clean);
    MapSizes const& s = clean.sizes;
    int64_t const victim = 7, group = 1;
    for (double poison : {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
        MapInputs<T> dirty = clean;
        dirty.x[static_cast<size_t>((group * s.channels + victim) * s.length() + 3)] = rounded<T>(poison);
        dirty.A[static_cast<size_t>(((group * mtmamba::kDirections + 2) * s.channels + victim) * s.states)] =
            static_cast<float>(poison);
        // A is shared by the images of a batch, so the second image's channel is the victim too.
        checkPoison(expected, runAll(dirty), [&](int64_t i) {
            return i % s.channels == victim && i / (s.length() * s.channels) % s.groups == group;
        });
    }
}

} // namespace reference
