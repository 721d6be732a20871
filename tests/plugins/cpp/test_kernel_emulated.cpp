// The kernels' own sources, launches included, on the CPU under the block emulator, against the float64 truth.
// Everything runs under three schedules, which must give the same bits.
#include "cuda.h"

#include "map_cases.h"
#include "scan_cases.h"

namespace {

using namespace reference;

constexpr unsigned kSchedules = 3;
constexpr int kWidths[] = {32, 16, 8};
constexpr mtmamba::MapPlan kPlans[] = {{16, 4}, {16, 3}, {16, 2}, {16, 1}, {8, 6}, {8, 1}};

// `run(y)` under every schedule, into fresh outputs of `count` NaNs; the first one's result, if all agree.
template <typename T, typename Run> std::vector<T> underSchedules(size_t count, Run const& run) {
    std::vector<T> first;
    for (unsigned seed = 0; seed < kSchedules; ++seed) {
        emulator::seed() = seed;
        std::vector<T> y = filledWithNaN<T>(count);
        CHECK(run(y.data()) == cudaSuccess);
        if (seed == 0) {
            first = y;
        }
        CHECK_NOTE(std::memcmp(y.data(), first.data(), count * sizeof(T)) == 0,
                   "schedule " + std::to_string(seed) + " gives other bits");
    }
    return first;
}

template <typename T> std::vector<T> runScan(Inputs<T> const& in, int blockChannels) {
    return underSchedules<T>(
        in.u.size(), [&](T* y) { return mtmamba::launchSelectiveScan(in.params(y), blockChannels, cudaStream_t{}); });
}

// A workspace of exactly the bytes that the plan asks for, all NaN; what lies behind it must stay as it is.
template <typename T> std::vector<T> runMap(MapInputs<T> const& in, mtmamba::MapPlan const& plan) {
    int64_t const bytes = in.workspaceBytes(plan);
    return underSchedules<T>(in.outputs(), [&](T* y) {
        std::vector<std::max_align_t> memory(static_cast<size_t>(bytes) / sizeof(std::max_align_t) + 2);
        std::memset(memory.data(), 0xff, memory.size() * sizeof(std::max_align_t));
        cudaError_t const error = mtmamba::launchSelectiveScan2D(in.params(y, memory.data()), plan, cudaStream_t{});
        auto const* const behind = reinterpret_cast<unsigned char const*>(memory.data()) + bytes;
        CHECK_NOTE(std::all_of(behind, behind + 16, [](unsigned char b) { return b == 0xff; }), "past the workspace");
        return error;
    });
}

// The base case in blocks of every width, the others in one, by turns.
template <typename T> void testScan(std::string const& type) {
    size_t turn = sizeof(T);
    forEachCase<T>([&](std::string const& name, Inputs<T> const& inputs) {
        Truth const truth = makeTruth(inputs);
        ++turn;
        for (int const width : kWidths) {
            if (name == "base" || width == kWidths[turn % std::size(kWidths)]) {
                std::string const cut = ", blocks of " + std::to_string(width) + ", ";
                compareAll(runScan(inputs, width), truth, type + cut + name);
            }
        }
    });
    checkIsolation<T>([](Inputs<T> const& inputs) { return runScan(inputs, 32); });
    checkIsolation<T>([](Inputs<T> const& inputs) { return runScan(inputs, 8); });
}

template <typename T> void testMap(std::string const& type) {
    size_t turn = sizeof(T);
    auto const run = [&](std::string const& name, MapInputs<T> const& inputs, bool all) {
        Truth const truth = makeTruth(inputs);
        ++turn;
        for (mtmamba::MapPlan const& plan : kPlans) {
            if (all || &plan == &kPlans[turn % std::size(kPlans)]) {
                std::string const cut = std::to_string(plan.channels) + " by " + std::to_string(plan.scans);
                compare(runMap(inputs, plan), truth, "2D " + type + ", " + cut + ", " + name);
            }
        }
    };
    forEachMapCase<T>([&](std::string const& name, MapInputs<T> const& inputs) { run(name, inputs, name == "base"); });
    emulator::maxSharedBytes() = 99 << 10; // of the smaller GPUs
    run("rank 64, little shared memory", makeMapInputs<T>({1, 1, 70, 3, 5, 64, 16}, {}, 5), true);
    emulator::maxSharedBytes() = 227 << 10;
    for (mtmamba::MapPlan const& plan : {kPlans[0], kPlans[5]}) {
        checkMapIsolation<T>([&](MapInputs<T> const& inputs) { return runMap(inputs, plan); });
    }
}

// Lengths around the tile of each width: 64, 128 and 256 tokens.
void testTileEdges() {
    for (int const width : kWidths) {
        int64_t const tile = 128 / width * 16;
        for (int64_t const length : {tile - 1, tile, tile + 1, 2 * tile}) {
            std::string const name = "length " + std::to_string(length) + ", blocks of " + std::to_string(width);
            Inputs<float> const inputs = makeInputs<float>({1, 3, 1, 5, length}, {}, 7);
            compareAll(runScan(inputs, width), makeTruth(inputs), name);
        }
    }
    for (int64_t const length : {2, 31, 32, 33, 63, 64, 65, 97, 129}) { // tiles of 32 and 64 tokens
        for (auto const& [height, columns] : {std::pair{int64_t{1}, length}, {length, int64_t{1}}}) {
            MapInputs<__half> const map = makeMapInputs<__half>({1, 1, 3, height, columns, 2, 5}, {}, 8);
            for (int const own : {8, 16}) {
                std::string const name = std::to_string(height) + "x" + std::to_string(columns);
                compare(runMap(map, {own, 4}), makeTruth(map), "2D " + name + ", channels " + std::to_string(own));
            }
        }
    }
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
    std::vector<float> const y = runScan(inputs, 8);
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
    // Rows 1, 3, 7, 15; columns 1, 7, 5, 15; rows reversed 15, 14, 12, 8; columns reversed 15, 10, 14, 8.
    float const expected[] = {1 + 1 + 15 + 15, 3 + 7 + 14 + 10, 7 + 5 + 12 + 14, 15 + 15 + 8 + 8};
    for (mtmamba::MapPlan const& plan : kPlans) {
        std::vector<float> const y = runMap(inputs, plan);
        for (size_t i = 0; i < 4; ++i) {
            CHECK_NOTE(std::abs(y[i] - 0.69314718F * expected[i]) < 1e-4F, std::to_string(y[i]));
        }
    }
}

// softplus over its whole range: relative error at most eight units of float32's rounding, and two for the rounding of
// x, which moves the result by |x| units where it is small; for half precision its polynomial's beside. In units of
// ln 2 of x and the result too. Then what is not finite.
template <typename Function> void testSoftplus(std::string const& name, double unit, double beside, Function function) {
    double worst = 0;
    for (double x = -86; x < 120; x += 0.0137) {
        auto const scaled = static_cast<float>(x / unit);
        double const truth = softplus(scaled * unit) / unit, allowed = kEps32 * (8 + 2 * std::max(-x, 0.0)) + beside;
        worst = std::max(worst, std::abs(function(scaled) / truth - 1) / allowed);
    }
    std::printf("softplus %s: worst error / allowed %.3f\n", name.c_str(), worst);
    CHECK_NOTE(worst <= 1, name + std::to_string(worst));
    float const infinity = std::numeric_limits<float>::infinity();
    CHECK(function(infinity) == infinity);
    CHECK(function(-infinity) == 0.F);
    CHECK(std::isnan(function(std::numeric_limits<float>::quiet_NaN())));
}
void testSoftplus() {
    double const unit = std::log(2.0);
    testSoftplus("natural", 1, 0, mtmamba::DeviceMath::softplus);
    testSoftplus("fp32", unit, 0, mtmamba::softplus2<float>);
    testSoftplus("fp16", unit, 8.4e-6, mtmamba::softplus2<__half>);
}

// The launcher refuses what the kernels cannot do, and launches nothing.
void testMapRefusals() {
    MapInputs<__half> const in = makeMapInputs<__half>({}, {}, 9);
    std::vector<std::max_align_t> y(in.outputs()), memory(static_cast<size_t>(in.workspaceBytes({16, 1})));
    auto const run = [&](auto const& change) {
        mtmamba::SelectiveScan2DParams<__half> params =
            in.params(reinterpret_cast<__half*>(y.data()), static_cast<void*>(memory.data()));
        change(params);
        return mtmamba::launchSelectiveScan2D(params, {16, 1}, cudaStream_t{});
    };
    CHECK(run([](auto&) {}) == cudaSuccess);
    CHECK(run([](auto& p) { ++p.y; }) == cudaErrorInvalidValue); // not aligned to 16 bytes
    CHECK(run([](auto& p) { p.y = nullptr; }) == cudaErrorInvalidValue);
    CHECK(run([](auto& p) { p.workspace = static_cast<char*>(p.workspace) + 8; }) == cudaErrorInvalidValue);
    CHECK(run([](auto& p) { p.workspace = nullptr; }) == cudaErrorInvalidValue);
    CHECK(run([](auto& p) { p.states = 65; }) == cudaErrorInvalidValue);
    CHECK(run([](auto& p) { p.states = 0; }) == cudaErrorInvalidValue);
    CHECK(run([](auto& p) { p.height = 0; }) == cudaErrorInvalidValue);
}

} // namespace

int main() {
    testSoftplus();
    testMapRefusals();
    testByHand();
    testMapByHand();
    testTileEdges();
    testScan<float>("fp32");
    testScan<__half>("fp16");
    testScan<__nv_bfloat16>("bf16");
    testMap<float>("fp32");
    testMap<__half>("fp16");
    testMap<__nv_bfloat16>("bf16");
    return check::finish();
}
