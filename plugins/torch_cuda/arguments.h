// What libmtmamba_cuda.so is called with, through ctypes (mtmamba/ops/cuda_kernel.py): plain structs of device pointers
// and sizes. Contiguous tensors, shapes as in kernels/selective_scan.cuh and selective_scan_2d.cuh.
#pragma once

#include <cstdint>

#include "kernels/selective_scan.cuh"
#include "kernels/selective_scan_2d.cuh"

namespace mtmamba::torch_cuda {

// Of the tensors that are not float32 whatever the others are.
enum DataType : int32_t { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2 };

struct ScanArguments {
    void const *u, *delta;
    float const* A;
    void const *B, *C;
    float const *D, *deltaBias;
    int64_t batch, channels, groups, states, length;
    DataType type;
    int32_t softplus;
};

// y's comes in.
struct ScanGradientArguments {
    void const* y;
    void *u, *delta;
    float* A;
    void *B, *C;
    float *D, *deltaBias;
};

struct MapArguments {
    void const *x, *xDbl;
    float const *dtWeight, *dtBias, *A, *D;
    int64_t batch, groups, channels, height, width, rank, states;
    DataType type;
};

// y's comes in.
struct MapGradientArguments {
    void const* y;
    void *x, *xDbl;
    float *dtWeight, *dtBias, *A, *D;
};

// Where to run: a device of the CUDA runtime, a cudaStream_t of it, and as many bytes there as the function for it
// says.
struct Place {
    int32_t device;
    void* stream;
    void* workspace;
};

template <typename T> SelectiveScanParams<T> paramsOf(ScanArguments const& a, void* y) {
    auto const typed = [](void const* pointer) { return static_cast<T const*>(pointer); };
    SelectiveScanParams<T> p{};
    p.u = typed(a.u);
    p.delta = typed(a.delta);
    p.A = a.A;
    p.B = typed(a.B);
    p.C = typed(a.C);
    p.D = a.D;
    p.deltaBias = a.deltaBias;
    p.y = static_cast<T*>(y);
    p.batch = a.batch;
    p.channels = a.channels;
    p.groups = a.groups;
    p.states = a.states;
    p.length = a.length;
    p.deltaSoftplus = a.softplus != 0;
    return p;
}

template <typename T> SelectiveScan2DParams<T> paramsOf(MapArguments const& a, void* y) {
    SelectiveScan2DParams<T> p{};
    p.x = static_cast<T const*>(a.x);
    p.xDbl = static_cast<T const*>(a.xDbl);
    p.dtWeight = a.dtWeight;
    p.dtBias = a.dtBias;
    p.A = a.A;
    p.D = a.D;
    p.y = static_cast<T*>(y);
    p.batch = a.batch;
    p.groups = a.groups;
    p.channels = a.channels;
    p.height = a.height;
    p.width = a.width;
    p.rank = a.rank;
    p.states = a.states;
    return p;
}

// body(T{}) for the C++ type of `type`; `otherwise` where there is none.
template <typename Result, typename Body> Result withType(DataType type, Result otherwise, Body const& body) {
    switch (type) {
    case kFloat32:
        return body(float{});
    case kFloat16:
        return body(__half{});
    case kBFloat16:
        return body(__nv_bfloat16{});
    }
    return otherwise;
}

} // namespace mtmamba::torch_cuda

#define MTMAMBA_EXPORT extern "C" __attribute__((visibility("default")))
