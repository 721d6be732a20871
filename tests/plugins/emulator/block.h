// One thread block of a CUDA kernel on the CPU: every CUDA thread is a fiber that runs until it must wait for others.
//
// What it finds, as emulator::Error or as results that differ between schedules (seeds):
//   - a missing barrier: whoever runs first differs between schedules, so equal bits for several seeds are the race
//   test;
//   - a divergent barrier: threads wait at one that the others never reach, or at two different ones;
//   - memory read before it was written: shared memory starts as NaN in every block;
//   - an asynchronous copy read before its wait: the destination is NaN from its start to the issuing thread's wait;
//   - a shuffle whose mask lacks its own thread; a source lane outside the mask gives NaN;
//   - writes past the end of shared memory.
// What it cannot find: threads are not interrupted between two waits, so lost updates of a plain `x += 1` stay hidden.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "fiber.h"

namespace emulator {

struct Error : std::runtime_error {
    using std::runtime_error::runtime_error;
};

constexpr unsigned kWarp = 32;
constexpr unsigned char kPoison = 0xff; // repeated, a NaN of every floating-point type

enum class Wait { kNothing, kBlock, kWarp };
enum class Exchange { kNone, kShuffle, kBallot };

struct AsyncCopy {
    void* target;
    void const* source;
    size_t bytes, zeros; // the last `zeros` of `bytes` are zeros and not read
};

struct Thread {
    Fiber fiber;
    unsigned index = 0;
    bool ended = false;
    // What it waits for. line: of the source, where the kernel called the barrier.
    Wait wait = Wait::kNothing;
    int line = 0;
    unsigned mask = 0;
    // What it gives to, and gets from, its warp.
    Exchange exchange = Exchange::kNone;
    uint64_t given = 0, got = 0;
    unsigned sourceLane = 0;
    std::vector<std::vector<AsyncCopy>> groups; // committed
    std::vector<AsyncCopy> open;                // not yet committed
};

class Block {
  public:
    // Runs kernel() once in each thread. `enter` is told which thread goes on, before it does.
    template <typename Kernel, typename Enter>
    void run(unsigned threads, size_t sharedBytes, unsigned seed, Kernel const& kernel, Enter const& enter) {
        mShared.assign(sharedBytes + kGuard + kAlignment, kPoison);
        mSharedBytes = sharedBytes;
        mSeed = seed;
        mGenerator.seed(seed);
        mError.clear();
        mLive = threads;
        mAtBarrier = 0;
        while (mPool.size() < threads) {
            mPool.push_back(std::make_unique<Thread>());
        }
        mReady.clear();
        mHead = 0;
        mThreads.clear();
        for (unsigned i = 0; i < threads; ++i) {
            prepare(*mPool[i], i, kernel);
        }
        while (mHead < mReady.size()) {
            mCurrent = next();
            enter(mCurrent->index);
            mCurrent->fiber.resume();
            if (!mError.empty()) {
                throw Error(mError);
            }
            if (mCurrent->fiber.done()) {
                end(*mCurrent);
            }
        }
        if (mLive > 0) {
            throw Error("divergent barrier: " + describeWaits());
        }
        checkGuard();
    }

    unsigned lane() const { return mCurrent->index % kWarp; }

    // Aligned to kAlignment bytes.
    void* shared() {
        auto const start = reinterpret_cast<uintptr_t>(mShared.data());
        return mShared.data() + (kAlignment - start % kAlignment) % kAlignment;
    }

    void syncThreads(int line) {
        wait(Wait::kBlock, line, 0);
        if (++mAtBarrier == mLive) {
            openBlock();
        }
        pauseUnlessReady();
    }

    // Value and source lane of a shuffle, or a ballot's vote; answers what the warp gave this thread.
    uint64_t exchange(Exchange kind, unsigned mask, uint64_t given, unsigned sourceLane, int line) {
        Thread& self = *mCurrent;
        if (!(mask >> lane() & 1)) {
            fail("thread " + std::to_string(self.index) + ", line " + std::to_string(line) +
                 ": its own lane is not in the mask of the warp function it calls");
        }
        self.exchange = kind;
        self.given = given;
        self.sourceLane = sourceLane;
        wait(Wait::kWarp, line, mask);
        openWarpIfComplete(self);
        pauseUnlessReady();
        return self.got;
    }

    void copyAsync(AsyncCopy const& copy) {
        bool const sized = copy.bytes == 4 || copy.bytes == 8 || copy.bytes == 16;
        if (!sized || copy.zeros > copy.bytes || reinterpret_cast<uintptr_t>(copy.target) % copy.bytes != 0 ||
            reinterpret_cast<uintptr_t>(copy.source) % copy.bytes != 0) {
            fail("thread " + std::to_string(mCurrent->index) + ": an asynchronous copy of " +
                 std::to_string(copy.bytes) + " bytes that is not of 4, 8 or 16 or not aligned to them");
        }
        std::memset(copy.target, kPoison, copy.bytes);
        mCurrent->open.push_back(copy);
    }
    void commitCopies() {
        mCurrent->groups.push_back(std::move(mCurrent->open));
        mCurrent->open.clear();
    }
    // All groups but the latest `prior` of this thread.
    void waitForCopies(size_t prior) {
        auto& groups = mCurrent->groups;
        size_t const count = groups.size() > prior ? groups.size() - prior : 0;
        for (size_t i = 0; i < count; ++i) {
            for (AsyncCopy const& copy : groups[i]) {
                std::memcpy(copy.target, copy.source, copy.bytes - copy.zeros);
                std::memset(static_cast<char*>(copy.target) + copy.bytes - copy.zeros, 0, copy.zeros);
            }
        }
        groups.erase(groups.begin(), groups.begin() + static_cast<std::ptrdiff_t>(count));
    }

    // Ends the launch: run() throws.
    void fail(std::string const& message) {
        mError = message;
        mCurrent->fiber.pause();
    }

  private:
    static constexpr size_t kGuard = 4096, kAlignment = 1024;

    template <typename Kernel> void prepare(Thread& thread, unsigned index, Kernel const& kernel) {
        thread.index = index;
        thread.ended = false;
        thread.wait = Wait::kNothing;
        thread.groups.clear();
        thread.open.clear();
        thread.fiber.start([](void* k) { (*static_cast<Kernel const*>(k))(); },
                           const_cast<void*>(static_cast<void const*>(&kernel)));
        mThreads.push_back(&thread);
        mReady.push_back(&thread);
    }

    // Seed 0: first come, first served. Seed 1: the last to get ready goes on at once, so that threads drift as far
    // apart as barriers allow. Others: any, by chance.
    Thread* next() {
        size_t const last = mReady.size() - 1;
        size_t const chosen = mSeed == 0 ? mHead : mSeed == 1 ? last : mHead + mGenerator() % (mReady.size() - mHead);
        Thread* const thread = mReady[chosen];
        if (mSeed == 0) {
            ++mHead;
        } else {
            mReady[chosen] = mReady[last];
            mReady.pop_back();
        }
        if (mHead == mReady.size()) {
            mReady.clear();
            mHead = 0;
        }
        return thread;
    }

    void wait(Wait kind, int line, unsigned mask) {
        mCurrent->wait = kind;
        mCurrent->line = line;
        mCurrent->mask = mask;
    }
    void release(Thread& thread) {
        thread.wait = Wait::kNothing;
        if (&thread != mCurrent) { // who opens a barrier goes on
            mReady.push_back(&thread);
        }
    }
    void pauseUnlessReady() {
        if (mCurrent->wait != Wait::kNothing) {
            mCurrent->fiber.pause();
        }
    }

    void openBlock() {
        for (Thread* const thread : mThreads) {
            if (thread->ended || thread->line != mCurrent->line) {
                fail("divergent barrier: " + describeWaits());
            }
        }
        mAtBarrier = 0;
        for (Thread* const thread : mThreads) {
            release(*thread);
        }
    }

    // Opens when all live threads of the mask wait with the same mask at the same line.
    void openWarpIfComplete(Thread const& last) {
        unsigned const first = last.index / kWarp * kWarp;
        auto const member = [&](unsigned l) -> Thread* {
            bool const exists = (last.mask >> l & 1) && first + l < mThreads.size();
            return exists && !mThreads[first + l]->ended ? mThreads[first + l] : nullptr;
        };
        for (unsigned l = 0; l < kWarp; ++l) {
            Thread const* const thread = member(l);
            if (thread && (thread->wait != Wait::kWarp || thread->mask != last.mask || thread->line != last.line)) {
                return;
            }
        }
        uint64_t votes = 0;
        for (unsigned l = 0; l < kWarp; ++l) {
            Thread const* const thread = member(l);
            votes |= static_cast<uint64_t>(thread && thread->given != 0) << l;
        }
        for (unsigned l = 0; l < kWarp; ++l) {
            if (Thread* const thread = member(l)) {
                Thread const* const source = member(thread->sourceLane % kWarp);
                thread->got = thread->exchange == Exchange::kBallot ? votes : source ? source->given : ~uint64_t{0};
            }
        }
        for (unsigned l = 0; l < kWarp; ++l) {
            if (Thread* const thread = member(l)) {
                release(*thread);
            }
        }
    }

    // A warp's other threads may have waited for this one alone; a block's barrier never opens without it.
    void end(Thread& thread) {
        thread.ended = true;
        --mLive;
        unsigned const first = thread.index / kWarp * kWarp;
        for (unsigned l = 0; l < kWarp && first + l < mThreads.size(); ++l) {
            Thread const& other = *mThreads[first + l];
            if (!other.ended && other.wait == Wait::kWarp && (other.mask >> (thread.index % kWarp) & 1)) {
                openWarpIfComplete(other);
            }
        }
    }

    std::string describeWaits() const {
        std::string text;
        for (size_t i = 0; i < mThreads.size();) {
            size_t last = i;
            while (last + 1 < mThreads.size() && describe(*mThreads[last + 1]) == describe(*mThreads[i])) {
                ++last;
            }
            text += (text.empty() ? "" : "; ") + std::string(last > i ? "threads " : "thread ") + std::to_string(i) +
                    (last > i ? "-" + std::to_string(last) : "") + " " + describe(*mThreads[i]);
            i = last + 1;
        }
        return text;
    }
    static std::string describe(Thread const& thread) {
        std::string const line = std::to_string(thread.line);
        if (thread.ended) {
            return "ended";
        }
        return thread.wait == Wait::kBlock  ? "wait for the block at line " + line
               : thread.wait == Wait::kWarp ? "wait for their warp at line " + line
                                            : "run";
    }

    void checkGuard() {
        auto const* const end = static_cast<unsigned char const*>(shared()) + mSharedBytes;
        for (auto const* byte = end; byte < mShared.data() + mShared.size(); ++byte) {
            if (*byte != kPoison) {
                throw Error("shared memory was written " + std::to_string(byte - end) + " bytes past its end");
            }
        }
    }

    std::vector<std::unique_ptr<Thread>> mPool;
    std::vector<Thread*> mThreads, mReady;
    std::vector<unsigned char> mShared;
    size_t mSharedBytes = 0;
    size_t mHead = 0; // mReady begins here
    unsigned mSeed = 0, mLive = 0, mAtBarrier = 0;
    std::mt19937 mGenerator;
    std::string mError;
    Thread* mCurrent = nullptr;
};

} // namespace emulator
