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
#else
#define MTMAMBA_DEVICE inline
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

// log2(x): off by 2^-22 absolutely for x in [0.5, 2], elsewhere by 2^-22.6 of itself at most.
MTMAMBA_DEVICE float log2Approx(float x) {
#ifdef __CUDA_ARCH__
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#elif defined(__CUDACC__)
    return log2f(x);
#else
    return emulator::approximateLog2(x);
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

// What is left of x beyond the 11 significant bits that multiplyTf32 takes of it; 0 of what is not finite but NaN.
MTMAMBA_DEVICE float lostByTf32(float x) {
#ifdef __CUDA_ARCH__
    float const kept = __uint_as_float(__float_as_uint(x) & 0xffffe000U);
#elif defined(__CUDACC__)
    float const kept = x;
#else
    float const kept = emulator::tf32(x);
#endif
    return kept == x ? 0.F : x - kept;
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

} // namespace mtmamba

#endif // MTMAMBA_SIMT
