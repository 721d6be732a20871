// CUDA's names for the emulator. Include it before a kernel's source: the source then compiles with a plain C++
// compiler, and emulator::launch runs it. Needs the toolkit's headers (no nvcc, no driver, no GPU).
//
//   #include "cuda.h"
//   #include "kernels/some_kernel.cuh"
//   emulator::seed() = 2;
//   emulator::launch(dim3(blocks), dim3(threads), sharedBytes, [&] { someKernel<float>(params); });
//
// `__shared__` variables are supported, but only dynamic shared memory (emulator::shared) starts as NaN.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <bitset>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <numeric>

#include "block.h"

#define MTMAMBA_EMULATOR 1
#undef __shared__
#define __shared__ static
#undef __launch_bounds__
#define __launch_bounds__(...)

inline thread_local uint3 threadIdx, blockIdx;
inline thread_local dim3 blockDim, gridDim;

namespace emulator {

inline Block& block() {
    static thread_local Block one;
    return one;
}

// Which schedule the next launches run under.
inline unsigned& seed() {
    static thread_local unsigned value = 0;
    return value;
}

inline void* shared() { return block().shared(); }

// Of sm_90; sm_80 has 163 KiB, sm_86, 89 and 120 have 99 KiB.
inline size_t& maxSharedBytes() {
    static thread_local size_t value = 227 << 10;
    return value;
}

inline void checkLaunch(dim3 grid, unsigned threads, size_t sharedBytes) {
    bool const fits = threads >= 1 && threads <= 1024 && grid.x >= 1 && grid.x <= 0x7fffffffU && grid.y >= 1 &&
                      grid.y <= 65535 && grid.z >= 1 && grid.z <= 65535 && sharedBytes <= maxSharedBytes();
    if (!fits) {
        throw Error("a launch that no GPU accepts: " + std::to_string(threads) + " threads, grid " +
                    std::to_string(grid.x) + "x" + std::to_string(grid.y) + "x" + std::to_string(grid.z) + ", " +
                    std::to_string(sharedBytes) + " bytes of shared memory");
    }
}

// Blocks run one after another, in order for seed 0, in the opposite order for seed 1, else by chance: results may not
// depend on it.
template <typename Kernel> void launch(dim3 grid, dim3 threads, size_t sharedBytes, Kernel const& kernel) {
    unsigned const count = threads.x * threads.y * threads.z;
    checkLaunch(grid, count, sharedBytes);
    gridDim = grid;
    blockDim = threads;
    std::vector<size_t> order(size_t{grid.x} * grid.y * grid.z);
    std::iota(order.begin(), order.end(), size_t{0});
    if (seed() == 1) {
        std::reverse(order.begin(), order.end());
    } else if (seed() > 1) {
        std::shuffle(order.begin(), order.end(), std::mt19937(seed()));
    }
    for (size_t const index : order) {
        blockIdx = {static_cast<unsigned>(index % grid.x), static_cast<unsigned>(index / grid.x % grid.y),
                    static_cast<unsigned>(index / grid.x / grid.y)};
        block().run(count, sharedBytes, seed(), kernel, [&](unsigned i) {
            threadIdx = {i % threads.x, i / threads.x % threads.y, i / threads.x / threads.y};
        });
    }
}

template <typename T> T shuffle(unsigned mask, T value, unsigned sourceLane, int line) {
    static_assert(sizeof(T) <= sizeof(uint64_t));
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof value);
    bits = block().exchange(Exchange::kShuffle, mask, bits, sourceLane, line);
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// The documented worst error of an approximate function: `value` is off by up to 2^-22.5 of itself, by how much depends
// on its bits alone. Subnormal results are flushed.
inline float approximate(float value) {
    if (!std::isfinite(value) || value == 0.F || std::abs(value) < std::numeric_limits<float>::min()) {
        return std::isfinite(value) ? std::copysign(0.F, value) : value;
    }
    uint32_t bits = 0;
    std::memcpy(&bits, &value, sizeof bits);
    double const share = static_cast<double>((bits * 2654435761U) >> 8) / (1 << 23) - 1.0; // in [-1, 1)
    return static_cast<float>(static_cast<double>(value) * (1.0 + 1.686e-7 * share));
}
inline float approximateLog2(float x) {
    float const exact = std::log2(x), shifted = approximate(exact);
    bool const nearOne = x >= 0.5F && x <= 2.F; // an absolute error there
    return nearOne ? exact + (shifted > exact ? 0x1p-22F : -0x1p-22F) : shifted;
}
inline float flushed(float x) { return std::abs(x) < std::numeric_limits<float>::min() ? std::copysign(0.F, x) : x; }

} // namespace emulator

// ---- Barriers and warp functions. `line` is the call's own.
inline void __syncthreads(int line = __builtin_LINE()) { emulator::block().syncThreads(line); }
inline void __syncwarp(unsigned mask = ~0U, int line = __builtin_LINE()) {
    emulator::block().exchange(emulator::Exchange::kNone, mask, 0, 0, line);
}
inline unsigned __ballot_sync(unsigned mask, int vote, int line = __builtin_LINE()) {
    auto const votes = emulator::block().exchange(emulator::Exchange::kBallot, mask, vote != 0, 0, line);
    return static_cast<unsigned>(votes);
}
inline int __any_sync(unsigned mask, int vote, int line = __builtin_LINE()) {
    return __ballot_sync(mask, vote, line) != 0;
}
inline int __all_sync(unsigned mask, int vote, int line = __builtin_LINE()) {
    return __ballot_sync(mask, !vote, line) == 0;
}

// `width` splits the warp into parts, a power of two: lanes count within their part.
template <typename T> T __shfl_sync(unsigned mask, T value, int source, int width = 32, int line = __builtin_LINE()) {
    int const lane = static_cast<int>(emulator::block().lane()), part = lane & -width;
    return emulator::shuffle(mask, value, static_cast<unsigned>(part + (source & (width - 1))), line);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, int line = __builtin_LINE()) {
    int const lane = static_cast<int>(emulator::block().lane()), source = lane - static_cast<int>(delta);
    return emulator::shuffle(mask, value, static_cast<unsigned>(source < (lane & -width) ? lane : source), line);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, int line = __builtin_LINE()) {
    int const lane = static_cast<int>(emulator::block().lane()), source = lane + static_cast<int>(delta);
    return emulator::shuffle(mask, value, static_cast<unsigned>(source > (lane | (width - 1)) ? lane : source), line);
}
template <typename T> T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, int line = __builtin_LINE()) {
    int const lane = static_cast<int>(emulator::block().lane()), source = lane ^ bits;
    return emulator::shuffle(mask, value, static_cast<unsigned>(source > (lane | (width - 1)) ? lane : source), line);
}

// ---- Tensor cores: mma.sync.m16n8k8 and m16n8k4 with tf32 operands, of which the first 11 significant bits count.
namespace emulator {

inline float tf32(float x, uint32_t added = 0) {
    uint32_t bits = 0;
    std::memcpy(&bits, &x, sizeof bits);
    bits = (bits + added) & 0xffffe000U;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}
// The operands of a warp's lanes, kept until the next product but one: two sets, so that one meeting a product is
// enough.
struct Operands {
    float a[32][4], b[32][2];
};
inline Operands& meet(float const* a, float const* b, int columns) {
    static thread_local std::map<int, Operands> all; // of warp w: 2 w and 2 w + 1
    static thread_local std::map<int, unsigned> turns;
    int const lane = static_cast<int>(block().lane()), thread = static_cast<int>(threadIdx.x);
    Operands& own = all[thread / 32 * 2 + static_cast<int>(turns[thread]++ % 2)];
    for (int i = 0; i < columns; ++i) {
        own.a[lane][2 * i] = tf32(a[2 * i]);
        own.a[lane][2 * i + 1] = tf32(a[2 * i + 1]);
        own.b[lane][i] = tf32(b[i]);
    }
    __syncwarp();
    return own;
}
inline void addProducts(float const* a, float const* b, int columns, float* c) {
    Operands const& all = meet(a, b, columns);
    int const lane = static_cast<int>(block().lane()), row = lane / 4 * 4, column = lane % 4 * 8;
    for (int k = 0; k < 4 * columns; ++k) {
        int const high = k / 4, from = k % 4;
        for (int i = 0; i < 4; ++i) {
            c[i] += all.a[row + from][2 * high + i / 2] * all.b[column + i % 2 * 4 + from][high];
        }
    }
}
inline void multiplyTf32(float const (&a)[4], float const (&b)[2], float* c) { addProducts(a, b, 2, c); }
inline void productTf32(float const (&a)[4], float const (&b)[2], float* c) {
    std::fill(c, c + 4, 0.F);
    addProducts(a, b, 2, c);
}
inline void productTf32(float const (&a)[2], float b, float* c) {
    std::fill(c, c + 4, 0.F);
    addProducts(a, &b, 1, c);
}

} // namespace emulator

// ---- Asynchronous copies into shared memory (cuda_pipeline_primitives.h).
inline void __pipeline_memcpy_async(void* target, void const* source, size_t bytes, size_t zeros = 0) {
    emulator::block().copyAsync({target, source, bytes, zeros});
}
inline void __pipeline_commit() { emulator::block().commitCopies(); }
inline void __pipeline_wait_prior(size_t prior) { emulator::block().waitForCopies(prior); }

// ---- Functions of one thread.
template <typename T> T __ldg(T const* address) { return *address; }
inline float __expf(float x) { return emulator::approximate(std::exp(x)); }
inline float __logf(float x) { return 0.693147181F * emulator::approximateLog2(x); }
inline float __log2f(float x) { return emulator::approximateLog2(x); }
inline float __fdividef(float x, float y) { return std::abs(y) > 0x1p126F ? 0.F : emulator::approximate(x / y); }
inline float __frcp_rn(float x) { return 1.F / x; }
inline float __saturatef(float x) { return x > 0.F ? std::min(x, 1.F) : 0.F; } // NaN gives 0
inline float rsqrtf(float x) { return 1.F / std::sqrt(x); }
inline int __popc(unsigned x) { return static_cast<int>(std::bitset<32>(x).count()); }

// One fiber runs at a time, so a plain addition is atomic here; the order of the additions follows the schedule.
template <typename T> T atomicAdd(T* target, T value) {
    T const before = *target;
    *target = static_cast<T>(before + value);
    return before;
}
