// A few lines of test framework: CHECK counts failures, and every main returns finish().
#pragma once

#include <cstdio>
#include <string>

namespace check {

inline int& failures() {
    static int count = 0;
    return count;
}

inline int& checks() {
    static int count = 0;
    return count;
}

inline void that(bool good, std::string const& what, char const* file, int line) {
    ++checks();
    if (!good) {
        ++failures();
        std::printf("%s:%d: failed: %s\n", file, line, what.c_str());
    }
}

inline int finish() {
    std::printf("%d checks, %d failed\n", checks(), failures());
    return failures() == 0 && checks() > 0 ? 0 : 1;
}

} // namespace check

#define CHECK(condition) check::that((condition), #condition, __FILE__, __LINE__)
#define CHECK_NOTE(condition, note)                                                                                    \
    check::that((condition), std::string(#condition) + " | " + (note), __FILE__, __LINE__)
