// The rules for dimensions that the table of plugins/ops.yaml does not show: sentences, and dimensions not known yet.
// (tests/plugins/test_contract.py puts every dimension of every tensor wrong, from that table.)
#include "check.h"
#include "common/dims.h"
#include "selective_scan/contract.h"
#include "selective_scan_2d/contract.h"

namespace {

using namespace mtmamba;
using nvinfer1::Dims;

OpDims scanDims(int64_t batch, int64_t channels, int64_t groups, int64_t states, int64_t length) {
    Dims const sequence{3, {batch, channels, length}};
    Dims const projected{4, {batch, groups, states, length}};
    return {
        sequence, sequence, Dims{2, {channels, states}}, projected, projected, Dims{1, {channels}}, Dims{1, {channels}},
        sequence};
}

OpDims mapDims(int64_t batch, int64_t groups, int64_t directions, int64_t features, int64_t rank) {
    int64_t const channels = 40, height = 7, width = 9, states = 16;
    Dims const rows{3, {groups, directions, channels}};
    return {Dims{5, {batch, groups, channels, height, width}},
            Dims{6, {batch, groups, directions, features, height, width}},
            Dims{4, {groups, directions, channels, rank}},
            rows,
            Dims{4, {groups, directions, channels, states}},
            rows,
            Dims{5, {batch, groups, height, width, channels}}};
}

bool contains(std::string const& text, std::string const& part) { return text.find(part) != std::string::npos; }

void testScan() {
    auto const check = [](OpDims const& dims) { return checkDims(kSelectiveScanSpec, dims); };
    CHECK(check(scanDims(1, 1, 1, 1, 1)).empty());
    CHECK(check(scanDims(1, 40, 20, kMaxStates, 16128)).empty());
    CHECK(check(scanDims(-1, 40, 20, 16, -1)).empty());
    CHECK(check(scanDims(int64_t{1} << 33, 4, 1, 16, int64_t{1} << 33)).empty());
    CHECK(contains(check(scanDims(1, 10, 4, 16, 5)), "expected D to be a multiple of G, found D = 10, G = 4"));
    CHECK(contains(check(scanDims(1, 8, 4, 65, 5)), "expected N in 1 to 64, found 65"));
    CHECK(contains(check(scanDims(-2, 8, 4, 16, 5)), "must be at least 1"));
    OpDims bad = scanDims(1, 8, 4, 16, 5);
    bad[4] = Dims{4, {1, 4, 16, 6}};
    std::string const found = check(bad);
    CHECK_NOTE(found == "SelectiveScan: expected C [B, G, N, L], found [1, 4, 16, 6]: L is 5 in the tensors before it",
               found);
}

void testMap() {
    auto const check = [](OpDims const& dims) { return checkDims(kSelectiveScan2DSpec, dims); };
    CHECK(check(mapDims(1, 2, 4, 35, 3)).empty());
    CHECK(check(mapDims(-1, 2, 4, -1, 3)).empty());
    CHECK(check(mapDims(1, 2, 4, 99, -1)).empty()); // R is not known, so no sum is wrong
    CHECK(contains(check(mapDims(1, 2, 3, 35, 3)), "SelectiveScan2D: expected K = 4, found 3"));
    std::string const found = check(mapDims(1, 2, 4, 36, 3));
    CHECK_NOTE(
        contains(found, "expected x_dbl [B, G, K, R+2N, H, W], found [1, 2, 4, 36, 7, 9]: R+2N is 35 by the other"),
        found);
}

void testAxes() {
    CHECK(axisOf(kSelectiveScan2DSpec, 0, 'D') == 2);
    CHECK(axisOf(kSelectiveScan2DSpec, 1, 'R') == -1);
    CHECK(dimText(kSelectiveScan2DSpec, 1, 3) == "R+2N");
    CHECK(rankOf(kSelectiveScan2DSpec, 6) == 5);
}

} // namespace

int main() {
    testScan();
    testMap();
    testAxes();
    return check::finish();
}
