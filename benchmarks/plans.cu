// Every plan of SelectiveScan2D at the sizes of the paper's models, float16: what mapPlan follows.
//
//   nvcc -std=c++17 -O3 -arch=native -Iplugins benchmarks/plans.cu -o build/plans && build/plans > plans.json
//
// `ms`: of a whole call, the median of several, events around each; `floor`: one exponential an update at 16 a clock
// and multiprocessor; `chosen`: mapPlan's. An argument runs only sizes whose name begins so; a second one, `once`,
// every plan once, for a profiler.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "kernels/selective_scan_2d.cuh"

namespace {

using mtmamba::kDirections;
using mtmamba::MapPlan;

struct Size {
    std::string name;
    int64_t groups, channels, height, width;
};

void check(cudaError_t error) {
    if (error != cudaSuccess) {
        std::fprintf(stderr, "%s\n", cudaGetErrorString(error));
        std::exit(1);
    }
}

template <typename T> T* onDevice(std::vector<T> const& values) {
    T* data = nullptr;
    check(cudaMalloc(&data, values.size() * sizeof(T)));
    check(cudaMemcpy(data, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
    return data;
}

template <typename T> T* filled(int64_t count, float low, float high) {
    std::mt19937 generator(static_cast<unsigned>(count));
    std::uniform_real_distribution<float> draw(low, high);
    std::vector<T> values(static_cast<size_t>(count));
    constexpr size_t kDrawn = 1 << 20; // the others repeat these
    for (size_t i = 0; i < values.size(); ++i) {
        if (i < kDrawn) {
            mtmamba::store(&values[i], draw(generator));
        } else {
            values[i] = values[i - kDrawn];
        }
    }
    return onDevice(values);
}

float median(std::vector<float> values) {
    std::sort(values.begin(), values.end());
    return values[values.size() / 2];
}

float milliseconds(cudaEvent_t from, cudaEvent_t to) {
    float ms = 0;
    check(cudaEventElapsedTime(&ms, from, to));
    return ms;
}

// Of calls in a row, after as many as take 100 ms: a GPU that was idle has a low clock.
float measure(mtmamba::SelectiveScan2DParams<__half> const& params, MapPlan const& plan) {
    std::vector<cudaEvent_t> events(22);
    for (cudaEvent_t& event : events) {
        check(cudaEventCreate(&event));
    }
    for (float warm = 0; warm < 100;) {
        check(cudaEventRecord(events.front()));
        for (int i = 0; i < 8; ++i) {
            check(mtmamba::launchSelectiveScan2D(params, plan, cudaStream_t{}));
        }
        check(cudaEventRecord(events.back()));
        check(cudaEventSynchronize(events.back()));
        warm += milliseconds(events.front(), events.back());
    }
    for (cudaEvent_t const event : events) {
        check(cudaEventRecord(event));
        check(mtmamba::launchSelectiveScan2D(params, plan, cudaStream_t{}));
    }
    check(cudaDeviceSynchronize());
    std::vector<float> times;
    for (size_t i = 1; i < events.size(); ++i) {
        times.push_back(milliseconds(events[i - 1], events[i]));
        check(cudaEventDestroy(events[i - 1]));
    }
    check(cudaEventDestroy(events.back()));
    return median(times);
}

} // namespace

int main(int arguments, char** values) {
    std::string const wanted = arguments > 1 ? values[1] : "";
    bool const once = arguments > 2;
    cudaDeviceProp device{};
    check(cudaGetDeviceProperties(&device, 0));
    int clock = 0; // kHz
    check(cudaDeviceGetAttribute(&clock, cudaDevAttrClockRate, 0));
    std::vector<Size> sizes;
    for (Size const& first :
         {Size{"nyudv2", 4, 1536, 28, 36}, {"pascal-context", 5, 1536, 32, 32}, {"cityscapes", 2, 1536, 32, 64}}) {
        for (int stage = 0; stage < 3; ++stage) {
            for (bool const cross : {false, true}) { // the cross-task block stacks the map that its tasks share, too
                std::string const name = first.name + "." + std::to_string(stage + 1);
                sizes.push_back({name + (cross ? ".cross" : ""), first.groups + cross, first.channels >> stage,
                                 first.height << stage, first.width << stage});
            }
        }
    }
    constexpr MapPlan kPlans[] = {{16, 1}, {16, 2}, {16, 3}, {16, 4}, {16, 6}, {8, 1}, {8, 2}};
    std::printf("{\"device\": \"%s\", \"rows\": [", device.name);
    char const* comma = "";
    for (Size const& size : sizes) {
        for (int64_t batch : {1, 8}) {
            if (size.name.rfind(wanted, 0) != 0) {
                continue;
            }
            int64_t const images = batch * size.groups, length = size.height * size.width, rank = size.channels / 32;
            int64_t const rows = size.groups * kDirections * size.channels, features = rank + 32;
            mtmamba::SelectiveScan2DParams<__half> params{};
            params.x = filled<__half>(images * size.channels * length, -1, 1);
            params.xDbl = filled<__half>(images * kDirections * features * length, -1, 1);
            params.dtWeight = filled<float>(rows * rank, -0.1F, 0.1F);
            params.dtBias = filled<float>(rows, -6.9F, -2.3F);
            params.A = filled<float>(rows * 16, -16, -1);
            params.D = filled<float>(rows, 1, 1);
            params.batch = batch;
            params.groups = size.groups;
            params.channels = size.channels;
            params.height = size.height;
            params.width = size.width;
            params.rank = rank;
            params.states = 16;
            int64_t bytes = 0;
            for (MapPlan const& plan : kPlans) {
                bytes = std::max(bytes, mtmamba::MapWorkspace<__half>(batch, size.groups, size.channels, size.height,
                                                                      size.width, rank, 16, plan)
                                            .bytes);
            }
            check(cudaMalloc(&params.y, static_cast<size_t>(images * length * size.channels) * sizeof(__half)));
            check(cudaMalloc(&params.workspace, static_cast<size_t>(bytes)));
            double const exps = static_cast<double>(batch * rows * length * 16);
            double const floor = exps / (16.0 * device.multiProcessorCount * clock);
            MapPlan const chosen = mtmamba::mapPlan(images, size.channels);
            for (MapPlan const& plan : kPlans) {
                if (once) {
                    check(mtmamba::launchSelectiveScan2D(params, plan, cudaStream_t{}));
                    check(cudaDeviceSynchronize());
                }
                float const ms = once ? 0.F : measure(params, plan);
                bool const isChosen = chosen.channels == plan.channels && chosen.scans == plan.scans;
                std::printf("%s\n{\"size\": \"%s\", \"batch\": %d, \"channels\": %d, \"scans\": %d, \"ms\": %.4f, "
                            "\"floor\": %.4f, \"times_floor\": %.2f, \"chosen\": %s}",
                            comma, size.name.c_str(), static_cast<int>(batch), plan.channels, plan.scans, ms, floor,
                            ms / floor, isChosen ? "true" : "false");
                comma = ",";
            }
            for (void const* data : {static_cast<void const*>(params.x), static_cast<void const*>(params.xDbl),
                                     static_cast<void const*>(params.dtWeight), static_cast<void const*>(params.dtBias),
                                     static_cast<void const*>(params.A), static_cast<void const*>(params.D),
                                     static_cast<void const*>(params.y), static_cast<void const*>(params.workspace)}) {
                check(cudaFree(const_cast<void*>(data)));
            }
        }
    }
    std::puts("\n]}");
}
