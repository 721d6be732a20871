// The kernels on a GPU, against the float64 truth. Exit status 77 (skipped) where there is no GPU.
#include <cuda_runtime_api.h>

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

template <typename T> std::vector<T> runOnDevice(Inputs<T> const& in) {
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
    CHECK(mtmamba::runSelectiveScan(params, cudaStream_t{}) == cudaSuccess);
    CHECK(cudaDeviceSynchronize() == cudaSuccess);
    return y.host();
}

template <typename T> std::vector<T> runOnDevice(MapInputs<T> const& in) {
    DeviceArray<T> const x(in.x), xDbl(in.xDbl), y(filledWithNaN<T>(in.outputs()));
    DeviceArray<float> const dtWeight(in.dtWeight), dtBias(in.dtBias), A(in.A), D(in.D);
    bool const sumsInOutput = std::is_same_v<T, float>;
    DeviceArray<float> const sums(filledWithNaN<float>(sumsInOutput ? 1 : in.outputs()));
    auto params = in.params(y.data, sumsInOutput ? reinterpret_cast<float*>(y.data) : sums.data);
    params.x = x.data;
    params.xDbl = xDbl.data;
    params.dtWeight = dtWeight.data;
    params.dtBias = dtBias.data;
    params.A = A.data;
    params.D = D.data;
    CHECK(mtmamba::runSelectiveScan2D(params, cudaStream_t{}) == cudaSuccess);
    CHECK(cudaDeviceSynchronize() == cudaSuccess);
    return y.host();
}

template <typename T> void testType(std::string const& type) {
    forEachCase<T>([&](std::string const& name, Inputs<T> const& inputs) {
        compareAll(runOnDevice(inputs), makeTruth(inputs), type + ", " + name);
    });
    checkIsolation<T>([](Inputs<T> const& inputs) { return runOnDevice(inputs); });
    forEachMapCase<T>([&](std::string const& name, MapInputs<T> const& inputs) {
        compareAll(runOnDevice(inputs), makeTruth(inputs), "2D " + type + ", " + name);
    });
    checkMapIsolation<T>([](MapInputs<T> const& inputs) { return runOnDevice(inputs); });
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

int main() {
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
