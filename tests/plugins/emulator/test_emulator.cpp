// The emulator finds what it claims to find.
#include "cuda.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "check.h"

namespace {

constexpr unsigned kSchedules = 4;

// The results of a kernel that writes `count` values, one vector a schedule; NaN where nothing was written.
template <typename Kernel>
std::vector<std::vector<float>> results(unsigned threads, size_t sharedBytes, size_t count, Kernel const& kernel) {
    std::vector<std::vector<float>> all;
    for (unsigned seed = 0; seed < kSchedules; ++seed) {
        emulator::seed() = seed;
        all.emplace_back(count, std::numeric_limits<float>::quiet_NaN());
        emulator::launch(dim3(2), dim3(threads), sharedBytes, [&] { kernel(all.back().data()); });
    }
    return all;
}

bool sameBits(std::vector<std::vector<float>> const& all) {
    return std::all_of(all.begin(), all.end(), [&](std::vector<float> const& one) {
        return std::memcmp(one.data(), all[0].data(), one.size() * sizeof(float)) == 0;
    });
}

bool contains(std::string const& text, std::string const& part) { return text.find(part) != std::string::npos; }

// What the emulator says of a kernel, under every schedule; they must agree that it is wrong.
template <typename Kernel> std::string complaint(unsigned threads, size_t sharedBytes, Kernel const& kernel) {
    std::string said;
    for (unsigned seed = 0; seed < kSchedules; ++seed) {
        emulator::seed() = seed;
        try {
            emulator::launch(dim3(1), dim3(threads), sharedBytes, kernel);
            CHECK_NOTE(false, "nothing was found under schedule " + std::to_string(seed));
        } catch (emulator::Error const& error) {
            said = error.what();
        }
    }
    return said;
}

// Reverses 64 values through shared memory.
template <bool kForget> void reverse(float* y) {
    auto* const tile = static_cast<float*>(emulator::shared());
    tile[threadIdx.x] = static_cast<float>(threadIdx.x + 100 * blockIdx.x);
    if (!kForget) {
        __syncthreads();
    }
    y[blockIdx.x * 64 + threadIdx.x] = tile[63 - threadIdx.x];
}

// Reads a tile, then overwrites it in the next round without waiting for those who still read.
template <bool kForget> void rounds(float* y) {
    auto* const tile = static_cast<float*>(emulator::shared());
    float sum = 0;
    for (int round = 0; round < 3; ++round) {
        tile[threadIdx.x] = static_cast<float>(threadIdx.x * 10 + static_cast<unsigned>(round));
        __syncthreads();
        sum += tile[(threadIdx.x + 7) % 64];
        if (!kForget) {
            __syncthreads();
        }
    }
    y[blockIdx.x * 64 + threadIdx.x] = sum;
}

void testMissingBarriers() {
    size_t const bytes = 64 * sizeof(float);
    auto const good = results(64, bytes, 128, reverse<false>);
    CHECK(sameBits(good));
    CHECK(good[0][0] == 63.F && good[0][64] == 163.F);
    CHECK(!sameBits(results(64, bytes, 128, reverse<true>)));
    CHECK(sameBits(results(64, bytes, 128, rounds<false>)));
    CHECK(!sameBits(results(64, bytes, 128, rounds<true>)));
}

void testDivergence() {
    std::string said = complaint(64, 0, [] {
        if (threadIdx.x >= 40) {
            __syncthreads();
        }
    });
    CHECK_NOTE(contains(said, "divergent barrier: threads 0-39 ended; threads 40-63 wait for the block at line"), said);
    said = complaint(64, 0, [] {
        if (threadIdx.x == 5) {
            __syncthreads();
        } else {
            __syncthreads();
        }
    });
    CHECK_NOTE(contains(said, "thread 5 wait for the block at line"), said);
    said = complaint(32, 0, [] {
        if (threadIdx.x < 16) {
            __syncwarp();
        }
        __syncthreads();
    });
    CHECK_NOTE(contains(said, "threads 0-15 wait for their warp at line"), said);
    said = complaint(32, 0, [] { __shfl_sync(0xffffU, 1.F, 0); });
    CHECK_NOTE(contains(said, "thread ") && contains(said, "its own lane is not in the mask"), said);
}

void testMemory() {
    CHECK(std::isnan(results(1, 4, 1, [](float* y) { *y = *static_cast<float*>(emulator::shared()); })[0][0]));
    std::string said = complaint(1, 4, [] { static_cast<float*>(emulator::shared())[3] = 0; });
    CHECK_NOTE(contains(said, "shared memory was written 8 bytes past its end"), said);
    said = complaint(1025, 0, [] {});
    CHECK_NOTE(contains(said, "a launch that no GPU accepts"), said);
}

// Copies 16 bytes a thread into shared memory, two groups in flight, and reads what its neighbour's copy brought.
template <int kPrior, bool kBarrier> void copyThrough(float const* source, float* y) {
    auto* const tile = static_cast<float*>(emulator::shared());
    unsigned const t = threadIdx.x;
    for (unsigned group = 0; group < 2; ++group) {
        __pipeline_memcpy_async(tile + 128 * group + 4 * t, source + 4 * t, 16, group == 1 && t == 31 ? 8 : 0);
        __pipeline_commit();
    }
    __pipeline_wait_prior(kPrior);
    if (kBarrier) {
        __syncthreads();
    }
    for (unsigned i = 0; i < 4; ++i) {
        y[blockIdx.x * 128 + 4 * t + i] = tile[128 + 4 * ((t + 1) % 32) + i];
    }
}

void testCopies() {
    alignas(16) float source[128];
    std::iota(source, source + 128, 1.F);
    size_t const bytes = 256 * sizeof(float);
    auto const with = [&](auto kernel) { return results(32, bytes, 256, [&](float* y) { kernel(source, y); }); };
    auto const good = with(copyThrough<0, true>);
    CHECK(sameBits(good));
    CHECK(good[0][0] == 5.F && good[0][121] == 126.F && good[0][122] == 0.F && good[0][124] == 1.F);
    CHECK(std::isnan(with(copyThrough<1, true>)[0][0])); // the second group is still on its way
    CHECK(!sameBits(with(copyThrough<0, false>)));       // waited for, but by other threads
    std::string const said =
        complaint(1, bytes, [&] { __pipeline_memcpy_async(static_cast<float*>(emulator::shared()) + 1, source, 16); });
    CHECK_NOTE(contains(said, "not aligned"), said);
}

void testWarpFunctions() {
    auto const lanes = results(64, 0, 128, [](float* y) {
        unsigned const lane = threadIdx.x % 32;
        float sum = static_cast<float>(lane);
        for (int bits = 1; bits < 8; bits *= 2) {
            sum += __shfl_xor_sync(~0U, sum, bits);
        }
        float value = 0;
        if (lane < 8) { // the others go their own way
            value = __shfl_down_sync(0xffU, static_cast<float>(lane), 1, 4) +
                    __shfl_up_sync(0xffU, static_cast<float>(lane), 3) + __shfl_sync(0xffU, sum, 9, 8);
        }
        value += static_cast<float>(__popc(__ballot_sync(~0U, lane % 3 == 0)));
        value += __any_sync(~0U, lane == 31) && !__all_sync(~0U, lane == 31) ? 1000.F : 0.F;
        y[blockIdx.x * 64 + threadIdx.x] = value;
    });
    CHECK(sameBits(lanes));
    // Lane 2: next is 3, no lane three before in the part so its own, sum of lanes 0..7; eleven votes.
    CHECK_NOTE(lanes[0][2] == 3 + 2 + 28 + 11 + 1000, std::to_string(lanes[0][2]));
    CHECK(lanes[0][3] == 3 + 0 + 28 + 11 + 1000); // last of its part of four
    CHECK(lanes[0][96 + 20] == 11 + 1000);
    auto const outside = results(32, 0, 64, [](float* y) {
        if (threadIdx.x < 4) {
            y[32 * blockIdx.x + threadIdx.x] = __shfl_sync(0xfU, 1.F, 9);
        }
    });
    CHECK(std::isnan(outside[0][0]));
}

void testTypes() {
    auto const found = results(1, 0, 4, [](float* y) {
        float2 const halves = __half22float2(__floats2half2_rn(1.F / 3.F, -2.F));
        float2 const brains = __bfloat1622float2(__floats2bfloat162_rn(1.F / 3.F, -2.F));
        y[0] = halves.x;
        y[1] = halves.y;
        y[2] = brains.x;
        y[3] = __expf(-1000.F);
    });
    CHECK(found[0][0] == 0.333251953125F && found[0][1] == -2.F && found[0][2] == 0.333984375F && found[0][3] == 0.F);
}

} // namespace

int main() {
    testMissingBarriers();
    testDivergence();
    testMemory();
    testCopies();
    testWarpFunctions();
    testTypes();
    return check::finish();
}
