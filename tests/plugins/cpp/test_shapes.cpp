// Which dimensions the plugin takes, and what it says about the others.
#include "check.h"
#include "kernels/selective_scan.cuh"
#include "selective_scan/shapes.h"

namespace {

using namespace mtmamba;
using nvinfer1::Dims;

ScanDims dimsFor(int64_t batch, int64_t channels, int64_t groups, int64_t states, int64_t length) {
    Dims const sequence{3, {batch, channels, length}};
    Dims const projected{4, {batch, groups, states, length}};
    return {
        sequence, sequence, Dims{2, {channels, states}}, projected, projected, Dims{1, {channels}}, Dims{1, {channels}},
        sequence};
}

bool contains(std::string const& text, std::string const& part) { return text.find(part) != std::string::npos; }

void testAccepted() {
    CHECK(checkScanDims(dimsFor(1, 1, 1, 1, 1)).empty());
    CHECK(checkScanDims(dimsFor(2, 6144, 16, 16, 1008)).empty());
    CHECK(checkScanDims(dimsFor(1, 40, 20, kMaxStates, 16128)).empty());
    CHECK(checkScanDims(dimsFor(-1, 40, 20, 16, -1)).empty());
    CHECK(checkScanDims(dimsFor(int64_t{1} << 33, 4, 1, 16, int64_t{1} << 33)).empty());
}

// Every single dimension of every tensor, one larger than the rest agree on.
void testEachDimension() {
    ScanDims const good = dimsFor(2, 40, 4, 16, 77);
    for (int32_t tensor = 0; tensor < kScanTensors; ++tensor) {
        for (int32_t i = 0; i < good[tensor].nbDims; ++i) {
            for (int64_t value : {good[tensor].d[i] + 1, int64_t{0}, int64_t{-2}}) {
                ScanDims bad = good;
                bad[tensor].d[i] = value;
                CHECK_NOTE(!checkScanDims(bad).empty(), std::to_string(tensor) + " dimension " + std::to_string(i));
            }
        }
        for (int32_t change : {-1, 1}) {
            ScanDims bad = good;
            bad[tensor].nbDims += change;
            CHECK(contains(checkScanDims(bad), "wrong number of dimensions"));
        }
    }
}

void testSentences() {
    CHECK(contains(checkScanDims(dimsFor(1, 10, 4, 16, 5)), "multiple of groups G, found D = 10, G = 4"));
    CHECK(contains(checkScanDims(dimsFor(1, 8, 4, 65, 5)), "1 to 64 states N, found 65"));
    for (ScanDims const& empty : {dimsFor(0, 8, 4, 16, 5), dimsFor(1, 0, 4, 16, 5), dimsFor(1, 8, 0, 16, 5),
                                  dimsFor(1, 8, 4, 0, 5), dimsFor(1, 8, 4, 16, 0)}) {
        CHECK_NOTE(contains(checkScanDims(empty), "must be at least 1"), checkScanDims(empty));
    }
    ScanDims bad = dimsFor(1, 8, 4, 16, 5);
    bad[kC] = Dims{4, {1, 4, 16, 6}};
    std::string const found = checkScanDims(bad);
    CHECK_NOTE(found == "SelectiveScan: expected C [B, G, N, L], found [1, 4, 16, 6]: L is 5 in the tensors before it",
               found);
}

} // namespace

int main() {
    testAccepted();
    testEachDimension();
    testSentences();
    return check::finish();
}
