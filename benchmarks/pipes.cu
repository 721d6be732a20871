// What a multiprocessor's units take beside each other: exponentials, multiply-adds, products of the tensor cores. What
// docs/kernels.md reckons with.
//
//   nvcc -std=c++17 -O3 -arch=native -Iplugins benchmarks/pipes.cu -o build/pipes && build/pipes > pipes.json
//
// A row: so many instructions of each kind, independent of each other, again and again by every warp of every
// multiprocessor. `clocks`: what a scheduler takes for them once; `ghz`: its clock meanwhile.
#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "kernels/simt.cuh"

namespace {

void check(cudaError_t error) {
    if (error != cudaSuccess) {
        std::fprintf(stderr, "%s\n", cudaGetErrorString(error));
        std::exit(1);
    }
}

struct PipeParams {
    float start;
    int times;
    float* out;
    unsigned long long* spent; // clocks, nanoseconds
};

__device__ unsigned long long nanoseconds() {
    unsigned long long time;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(time));
    return time;
}

// Neither computed later nor moved past another of these.
template <int kCount> __device__ void keep(float (&values)[kCount]) {
    for (float& value : values) {
        asm volatile("" : "+f"(value));
    }
}

template <int kCount> __device__ float sumOf(float const (&values)[kCount]) {
    float sum = 0.F;
    for (float const value : values) {
        sum += value;
    }
    return sum;
}

template <int... kCounts> constexpr int kLargest = std::max({kCounts...});

constexpr int kRepeats = 4; // of the instructions in the loop

template <int kExps, int kFmas, int kProducts> __global__ void __launch_bounds__(512) pipesKernel(PipeParams p) {
    float exps[kExps + 1], fmas[kFmas + 1], products[4 * kProducts + 1];
    float const a[4] = {p.start, p.start, p.start, p.start}, b[2] = {p.start, p.start};
    for (int i = 0; i <= kExps; ++i) {
        exps[i] = p.start + static_cast<float>(i);
    }
    for (int i = 0; i <= kFmas; ++i) {
        fmas[i] = p.start + static_cast<float>(i);
    }
    for (float& value : products) {
        value = 0.F;
    }
    constexpr int kSteps = kLargest<kExps, kFmas, kProducts>;
    keep(exps), keep(fmas), keep(products);
    long long const clock = clock64();
    unsigned long long const time = nanoseconds();
#pragma unroll 1
    for (int i = 0; i < p.times; ++i) {
        MTMAMBA_UNROLL
        for (int step = 0; step < kRepeats * kSteps; ++step) {
            int const k = step % kSteps; // spread evenly
            if (k * kExps / kSteps != (k + 1) * kExps / kSteps) {
                float& value = exps[k * kExps / kSteps];
                value = mtmamba::exp2Approx(value);
            }
            if (k * kFmas / kSteps != (k + 1) * kFmas / kSteps) {
                float& value = fmas[k * kFmas / kSteps];
                value = fmaf(value, p.start, p.start);
            }
            if (k * kProducts / kSteps != (k + 1) * kProducts / kSteps) {
                mtmamba::multiplyTf32(a, b, products + 4 * (k * kProducts / kSteps));
            }
        }
    }
    keep(exps), keep(fmas), keep(products);
    if (threadIdx.x == 0 && blockIdx.x == 0) {
        p.spent[0] = static_cast<unsigned long long>(clock64() - clock);
        p.spent[1] = nanoseconds() - time;
    }
    p.out[blockIdx.x * blockDim.x + threadIdx.x] = sumOf(exps) + sumOf(fmas) + sumOf(products);
}

char const* comma = ""; // before a row

template <int kExps, int kFmas, int kProducts> void measure(PipeParams const& p, int processors) {
    for (int warps : {1, 2, 4}) { // of a scheduler
        for (int run = 0; run < 2; ++run) {
            pipesKernel<kExps, kFmas, kProducts><<<processors, 128 * warps>>>(p);
            check(cudaDeviceSynchronize());
        }
        unsigned long long spent[2];
        check(cudaMemcpy(spent, p.spent, sizeof spent, cudaMemcpyDeviceToHost));
        auto const clocks = static_cast<double>(spent[0]);
        std::printf("%s\n{\"exponentials\": %d, \"multiply_adds\": %d, \"products\": %d, \"warps\": %d, "
                    "\"clocks\": %.1f, \"ghz\": %.3f}",
                    comma, kExps, kFmas, kProducts, warps, clocks / (p.times * kRepeats * warps),
                    clocks / static_cast<double>(spent[1]));
        comma = ",";
    }
}

} // namespace

int main() {
    cudaDeviceProp device{};
    check(cudaGetDeviceProperties(&device, 0));
    PipeParams p{};
    p.start = 0.5F;
    p.times = 20000;
    check(cudaMalloc(&p.out, static_cast<size_t>(device.multiProcessorCount) * 512 * sizeof(float)));
    check(cudaMalloc(&p.spent, 2 * sizeof(*p.spent)));
    std::printf("{\"device\": \"%s\", \"rows\": [", device.name);
    measure<8, 0, 0>(p, device.multiProcessorCount);
    measure<0, 16, 0>(p, device.multiProcessorCount);
    measure<8, 16, 0>(p, device.multiProcessorCount);
    measure<8, 32, 0>(p, device.multiProcessorCount);
    measure<0, 0, 4>(p, device.multiProcessorCount);
    measure<0, 16, 4>(p, device.multiProcessorCount);
    measure<8, 0, 4>(p, device.multiProcessorCount);
    measure<8, 16, 4>(p, device.multiProcessorCount);
    std::puts("\n]}");
}
