// What kernels need of the machine, under names that nvcc and the block emulator of the tests both give: a launch,
// shared memory, approximate functions. A kernel that uses these and CUDA's own intrinsics compiles with either.
//
// Kernels stand between `#ifdef MTMAMBA_SIMT` and `#endif`: plain host compilers (the plugin's shell) skip them.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "kernels/types.cuh"

#if defined(__CUDACC__) || defined(MTMAMBA_EMULATOR)
#define MTMAMBA_SIMT 1
#endif

#ifdef MTMAMBA_SIMT

#ifdef __CUDACC__
#define MTMAMBA_DEVICE __device__ __forceinline__
#define MTMAMBA_APART inline __device__ __noinline__ // rarely called: not to weigh on the rest's registers
#else
#define MTMAMBA_DEVICE inline
#define MTMAMBA_APART inline
#endif

namespace mtmamba {

// The block's dynamic shared memory, aligned to 16 bytes: every launch says how much it is.
MTMAMBA_DEVICE void* sharedMemory() {
#ifdef __CUDACC__
    extern __shared__ uint4 mtmambaShared[];
    return mtmambaShared;
#else
    return emulator::shared();
#endif
}

// Four consecutive floats of shared memory, aligned to 16 bytes.
MTMAMBA_DEVICE void loadFour(float const* source, float* target) {
    float4 const v = *reinterpret_cast<float4 const*>(source);
    target[0] = v.x;
    target[1] = v.y;
    target[2] = v.z;
    target[3] = v.w;
}

// kCount of them, 1, 2 or 4, aligned to their size.
template <int kCount> MTMAMBA_DEVICE void loadSome(float const* source, float* target) {
    if constexpr (kCount == 4) {
        loadFour(source, target);
    } else if constexpr (kCount == 2) {
        float2 const v = *reinterpret_cast<float2 const*>(source);
        target[0] = v.x;
        target[1] = v.y;
    } else {
        target[0] = *source;
    }
}

// What a block of the current device may have of shared memory.
inline size_t maxSharedBytes() {
#ifdef __CUDACC__
    int device = 0, bytes = 48 << 10;
    if (cudaGetDevice(&device) == cudaSuccess) {
        cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    }
    return static_cast<size_t>(bytes);
#else
    return emulator::maxSharedBytes();
#endif
}

// kernel<<<grid, threads, sharedBytes, stream>>>(params). Neither allocates nor synchronises.
template <typename Params>
cudaError_t launchBlocks(void (*kernel)(Params), dim3 grid, unsigned threads, size_t sharedBytes, cudaStream_t stream,
                         Params const& params) {
#ifdef __CUDACC__
    if (sharedBytes > (48U << 10)) { // past this a kernel must ask
        cudaError_t const error =
            cudaFuncSetAttribute(reinterpret_cast<void const*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(sharedBytes));
        if (error != cudaSuccess) {
            return error;
        }
    }
    kernel<<<grid, threads, sharedBytes, stream>>>(params);
    return cudaGetLastError();
#else
    (void)stream;
    emulator::launch(grid, dim3(threads), sharedBytes, [&] { kernel(params); });
    return cudaSuccess;
#endif
}

// 2^x by the special-function unit: off by 2^-22.5 of itself at most, subnormal results are 0, 2^-inf = 0, NaN stays.
MTMAMBA_DEVICE float exp2Approx(float x) {
#ifdef __CUDA_ARCH__
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#elif defined(__CUDACC__)
    return exp2f(x); // the host's pass of nvcc never runs this
#else
    return emulator::approximate(exp2f(x));
#endif
}

// 1 / x, within a unit in the last place.
MTMAMBA_DEVICE float reciprocalApprox(float x) {
#ifdef __CUDA_ARCH__
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#elif defined(__CUDACC__)
    return 1.F / x;
#else
    return emulator::approximate(1.F / emulator::flushed(x));
#endif
}

// The first 11 significant bits of x: what multiplyTf32 takes of it.
MTMAMBA_DEVICE float cutToTf32(float x) {
#ifdef __CUDA_ARCH__
    return __uint_as_float(__float_as_uint(x) & 0xffffe000U);
#elif defined(__CUDACC__)
    return x;
#else
    return emulator::tf32(x);
#endif
}
// What is left of x beyond them; 0 of what is not finite but NaN.
MTMAMBA_DEVICE float lostByTf32(float x) {
    float const kept = cutToTf32(x);
    return kept == x ? 0.F : x - kept;
}

// x to the nearest number of 11 significant bits. A NaN may come out as a zero.
MTMAMBA_DEVICE float roundedToTf32(float x) {
#ifdef __CUDA_ARCH__
    return __uint_as_float((__float_as_uint(x) + 0x1000U) & 0xffffe000U);
#elif defined(__CUDACC__)
    return x;
#else
    return emulator::tf32(x, 0x1000U);
#endif
}

// c += a b on the tensor cores, by a whole warp: a [16, 8], b [8, 8], c [16, 8], the products of their numbers' first
// 11 significant bits added in float32. Lane 4g + q has a's (row g, column q), (g + 8, q), (g, q + 4), (g + 8, q + 4);
// b's (row q, column g), (q + 4, g); c's (row g, columns 2q and 2q + 1), (g + 8, the same).
MTMAMBA_DEVICE void multiplyTf32(float const (&a)[4], float const (&b)[2], float* c) {
#ifdef __CUDA_ARCH__
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
        "%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])),
          "r"(__float_as_uint(a[3])), "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])));
#elif !defined(__CUDACC__)
    emulator::multiplyTf32(a, b, c);
#endif
}

// The same, c = a b.
MTMAMBA_DEVICE void productTf32(float const (&a)[4], float const (&b)[2], float* c) {
#ifdef __CUDA_ARCH__
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %10, "
        "%10, %10};"
        : "=f"(c[0]), "=f"(c[1]), "=f"(c[2]), "=f"(c[3])
        : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])),
          "r"(__float_as_uint(a[3])), "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])), "f"(0.F));
#elif !defined(__CUDACC__)
    emulator::productTf32(a, b, c);
#endif
}

// The same of a [16, 4] and b [4, 8]: a's (row g, column q), (g + 8, q); b's (row q, column g).
MTMAMBA_DEVICE void productTf32(float const (&a)[2], float b, float* c) {
#ifdef __CUDA_ARCH__
    asm("mma.sync.aligned.m16n8k4.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%7, %7, %7, %7};"
        : "=f"(c[0]), "=f"(c[1]), "=f"(c[2]), "=f"(c[3])
        : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(b)), "f"(0.F));
#elif !defined(__CUDACC__)
    emulator::productTf32(a, b, c);
#endif
}

} // namespace mtmamba

#endif // MTMAMBA_SIMT
