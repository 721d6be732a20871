// Fibers: functions with stacks of their own that hand control to and fro within one operating-system thread.
//
// makecontext starts a fiber; after that _setjmp and _longjmp switch, which spares the two system calls of swapcontext.
// Compile with -U_FORTIFY_SOURCE: its checked longjmp takes another fiber's stack for a broken one.
#pragma once

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <cstddef>
#include <new>

namespace emulator {

// Memory of one stack, with a page below it that may not be touched: an overflow faults instead of corrupting.
class Stack {
  public:
    static constexpr size_t kBytes = 128 << 10;

    Stack() : mGuard(static_cast<size_t>(sysconf(_SC_PAGESIZE))) {
        mMemory = mmap(nullptr, mGuard + kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (mMemory == MAP_FAILED || mprotect(mMemory, mGuard, PROT_NONE) != 0) {
            throw std::bad_alloc();
        }
    }
    ~Stack() { munmap(mMemory, mGuard + kBytes); }
    Stack(Stack const&) = delete;
    Stack& operator=(Stack const&) = delete;

    void* bottom() const { return static_cast<char*>(mMemory) + mGuard; }

  private:
    size_t mGuard;
    void* mMemory;
};

class Fiber {
  public:
    // Readies run(argument); the first resume enters it. What ran before is dropped, its objects are not destroyed.
    void start(void (*run)(void*), void* argument) {
        mRun = run;
        mArgument = argument;
        mEntered = mEntered && mDone; // a fiber that ended waits at its loop's top; another needs a new stack frame
        mDone = false;
    }

    // From outside: runs the fiber until it pauses or ends.
    void resume() {
        if (_setjmp(mOutside) == 0) {
            if (mEntered) {
                _longjmp(mInside, 1);
            }
            mEntered = true;
            enter();
        }
    }

    // From inside: returns at the next resume.
    void pause() {
        if (_setjmp(mInside) == 0) {
            _longjmp(mOutside, 1);
        }
    }

    bool done() const { return mDone; }

  private:
    [[noreturn]] void enter() {
        getcontext(&mContext);
        mContext.uc_stack.ss_sp = mStack.bottom();
        mContext.uc_stack.ss_size = Stack::kBytes;
        mContext.uc_link = nullptr;
        entering() = this; // makecontext passes int arguments only
        makecontext(&mContext, &Fiber::body, 0);
        setcontext(&mContext);
        throw std::bad_alloc(); // setcontext returns on failure alone
    }

    static void body() {
        Fiber* const self = entering();
        for (;;) {
            self->mRun(self->mArgument);
            self->mDone = true;
            self->pause();
        }
    }

    static Fiber*& entering() {
        static thread_local Fiber* fiber = nullptr;
        return fiber;
    }

    Stack mStack;
    ucontext_t mContext;
    jmp_buf mInside, mOutside;
    void (*mRun)(void*) = nullptr;
    void* mArgument = nullptr;
    bool mEntered = false, mDone = true;
};

} // namespace emulator
