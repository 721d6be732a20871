// The kernels on a GPU, against the float64 truth. Exit status 77 (skipped) where there is no GPU.
#include <cuda_runtime_api.h>

#include <cstring>

#include "map_cases.h"
#include "scan_cases.h"
#include "selective_scan/launch.h"
#include "selective_scan_2d/launch.h"

namespace {

using namespace reference;

template <typename T> struct DeviceArray {
    T* data = nullptr;
    size_t count;

    explicit DeviceArray(std::vector<T> const& host) : count(host.size()) {
        CHECK(cudaMalloc(reinterpret_cast<void**>(&data), count * sizeof(T)) == cudaSuccess);
        CHECK(cudaMemcpy(data, host.data(), count * sizeof(T), cudaMemcpyHostToDevice) == cudaSuccess);
    }
    ~DeviceArray() { cudaFree(data); }
    DeviceArray(DeviceArray const&) = delete;
    DeviceArray& operator=(DeviceArray const&) = delete;

    std::vector<T> host() const {
        std::vector<T> values(count);
        CHECK(cudaMemcpy(values.data(), data, count * sizeof(T), cudaMemcpyDeviceToHost) == cudaSuccess);
        return values;
    }
};

template <typename T> std::vector<T> runOnDevice(Inputs<T> const& in, int blockChannels) {
    DeviceArray<T> const u(in.u), delta(in.delta), B(in.B), C(in.C), y(filledWithNaN<T>(in.u.size()));
    DeviceArray<float> const A(in.A), D(in.D), deltaBias(in.deltaBias);
    auto params = in.params(y.data);
    params.u = u.data;
    params.delta = delta.data;
    params.A = A.data;
    params.B = B.data;
    params.C = C.data;
    params.D = D.data;
    params.deltaBias = deltaBias.data;
    CHECK(mtmamba::runSelectiveScan(params, blockChannels, cudaStream_t{}) == cudaSuccess);
    CHECK(cudaDeviceSynchronize() == cudaSuccess);
    return y.host();
}

template <typename T> std::vector<T> runOnDevice(MapInputs<T> const& in, mtmamba::MapPlan const& plan) {
    DeviceArray<T> const x(in.x), xDbl(in.xDbl), y(filledWithNaN<T>(in.outputs()));
    DeviceArray<float> const dtWeight(in.dtWeight), dtBias(in.dtBias), A(in.A), D(in.D);
    DeviceArray<float> const workspace(filledWithNaN<float>(static_cast<size_t>(in.workspaceBytes(plan)) / 4));
    auto params = in.params(y.data, workspace.data);
    params.x = x.data;
    params.xDbl = xDbl.data;
    params.dtWeight = dtWeight.data;
    params.dtBias = dtBias.data;
    params.A = A.data;
    params.D = D.data;
    CHECK(mtmamba::runSelectiveScan2D(params, plan, cudaStream_t{}) == cudaSuccess);
    CHECK(cudaDeviceSynchronize() == cudaSuccess);
    return y.host();
}

// With the argument "few", for tools that are slow: the cases that take every path of the kernels.
bool few = false;
bool isWanted(std::string const& name) {
    for (char const* const one : {"base", "map 28x36", "states 17", "channels 33", "rank 48", "rank 70"}) {
        if (name == one) {
            return true;
        }
    }
    return !few;
}

// A second run must give the same bits.
template <typename T, typename Run> std::vector<T> twice(Run const& run) {
    std::vector<T> const first = run(), second = run();
    CHECK(std::memcmp(first.data(), second.data(), first.size() * sizeof(T)) == 0);
    return first;
}

template <typename T> void testType(std::string const& type) {
    for (int const width : {32, 16, 8}) {
        std::string const cut = type + ", blocks of " + std::to_string(width) + ", ";
        forEachCase<T>([&](std::string const& name, Inputs<T> const& inputs) {
            if (isWanted(name)) {
                compareAll(twice<T>([&] { return runOnDevice(inputs, width); }), makeTruth(inputs), cut + name);
            }
        });
        checkIsolation<T>([&](Inputs<T> const& inputs) { return runOnDevice(inputs, width); });
    }
    for (mtmamba::MapPlan const& plan : {mtmamba::MapPlan{16, 4}, {16, 3}, {16, 2}, {16, 1}, {8, 6}, {8, 1}}) {
        std::string const cut =
            "2D " + type + ", " + std::to_string(plan.channels) + " by " + std::to_string(plan.scans) + ", ";
        forEachMapCase<T>([&](std::string const& name, MapInputs<T> const& inputs) {
            if (isWanted(name)) {
                compare(twice<T>([&] { return runOnDevice(inputs, plan); }), makeTruth(inputs), cut + name);
            }
        });
        checkMapIsolation<T>([&](MapInputs<T> const& inputs) { return runOnDevice(inputs, plan); });
    }
}

// The launcher refuses what the kernels cannot do, and launches nothing.
void testRefusals() {
    mtmamba::SelectiveScanParams<float> params{};
    params.batch = params.channels = params.groups = params.length = 1;
    for (int64_t states : {0, 65}) {
        params.states = states;
        CHECK(mtmamba::runSelectiveScan(params, cudaStream_t{}) == cudaErrorInvalidValue);
    }
    params.states = 16;
    params.channels = 0;
    CHECK(mtmamba::runSelectiveScan(params, cudaStream_t{}) == cudaErrorInvalidValue);
}

} // namespace

int main(int arguments, char** values) {
    few = arguments > 1 && std::string(values[1]) == "few";
    int count = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) {
        std::puts("skipped: no GPU");
        return 77;
    }
    testRefusals();
    testType<float>("fp32");
    testType<__half>("fp16");
    testType<__nv_bfloat16>("bf16");
    return check::finish();
}
