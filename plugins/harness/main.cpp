// The plugins on a GPU, without TensorRT: every operator in every type, alone and in two contexts on two streams at
// once.
//
//   nvcc -std=c++17 -Iplugins -isystem HEADERS plugins/harness/harness.cpp plugins/harness/main.cpp -o harness -ldl
//   harness libmtmamba_plugins.so
//
// All must give the same bits, and finite ones, into outputs and scratch memory that held NaN. What the numbers should
// be is the Python tests' to say (tests/runtime/test_harness.py); this is for compute-sanitizer. Exit status 77 without
// a GPU.
#include <cuda_runtime_api.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "harness/harness.h"

namespace {

constexpr int32_t kFloat = 0, kHalf = 1, kBFloat16 = 7; // nvinfer1::DataType
constexpr int kTurns = 4;                               // calls on each of the two streams

void cuda(cudaError_t status) {
    if (status != cudaSuccess) {
        throw std::runtime_error(cudaGetErrorString(status));
    }
}

[[noreturn]] void failed() { throw std::runtime_error(mtmambaHarnessError()); }

size_t itemBytes(int32_t type) { return type == kFloat ? 4 : 2; }

size_t elements(MtmambaHarnessTensor const& tensor) {
    size_t count = 1;
    for (int32_t axis = 0; axis < tensor.rank; ++axis) {
        count *= static_cast<size_t>(tensor.dims[axis]);
    }
    return count;
}

// Device memory that holds NaN in every type.
class Buffer {
  public:
    explicit Buffer(size_t bytes) : mBytes(bytes) {
        if (bytes > 0) {
            cuda(cudaMalloc(&mData, bytes));
            cuda(cudaMemset(mData, 0xFF, bytes));
        }
    }
    ~Buffer() { cudaFree(mData); }
    Buffer(Buffer const&) = delete;
    Buffer& operator=(Buffer const&) = delete;

    void* data() const { return mData; }
    std::vector<unsigned char> host() const {
        std::vector<unsigned char> bytes(mBytes);
        cuda(cudaMemcpy(bytes.data(), mData, mBytes, cudaMemcpyDeviceToHost));
        return bytes;
    }

  private:
    void* mData = nullptr;
    size_t mBytes;
};

// `value` as two or four bytes of the type. Small values of few digits only: the cut parts are zero.
void store(unsigned char* to, float value, int32_t type) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    if (type == kFloat) {
        std::memcpy(to, &bits, 4);
        return;
    }
    uint32_t const sign = bits >> 16 & 0x8000U, exponent = (bits >> 23 & 0xFFU) - 112, fraction = bits >> 13 & 0x3FFU;
    uint16_t const half = static_cast<uint16_t>(value == 0 ? 0 : sign | exponent << 10 | fraction);
    uint16_t const brain = static_cast<uint16_t>(bits >> 16);
    std::memcpy(to, type == kHalf ? &half : &brain, 2);
}

// Multiples of 1/8 in -1 .. 7/8; where `negative`, in -2 .. -1/8.
std::unique_ptr<Buffer> filled(MtmambaHarnessTensor const& tensor, bool negative, uint32_t seed) {
    std::vector<unsigned char> bytes(elements(tensor) * itemBytes(tensor.type));
    for (size_t i = 0; i < elements(tensor); ++i) {
        seed = seed * 1664525U + 1013904223U;
        int const step = static_cast<int>(seed >> 28) - (negative ? 16 : 8);
        store(&bytes[i * itemBytes(tensor.type)], static_cast<float>(step) / 8, tensor.type);
    }
    auto buffer = std::make_unique<Buffer>(bytes.size());
    cuda(cudaMemcpy(buffer->data(), bytes.data(), bytes.size(), cudaMemcpyHostToDevice));
    return buffer;
}

bool finite(std::vector<unsigned char> const& bytes, int32_t type) {
    for (size_t at = 0; at < bytes.size(); at += itemBytes(type)) {
        uint32_t bits = 0;
        std::memcpy(&bits, &bytes[at], itemBytes(type));
        uint32_t const exponent = type == kFloat ? 0x7F800000U : type == kHalf ? 0x7C00U : 0x7F80U;
        if ((bits & exponent) == exponent) {
            return false;
        }
    }
    return true;
}

struct Context {
    Context(MtmambaHarness* harness, char const* op, std::vector<MtmambaHarnessTensor> const& inputs)
        : plugin(mtmambaHarnessCreate(harness, op, nullptr, 0, inputs.data(), static_cast<int32_t>(inputs.size()))) {
        if (!plugin) {
            failed();
        }
        MtmambaHarnessTensor const y = mtmambaHarnessOutput(plugin);
        output = std::make_unique<Buffer>(elements(y) * itemBytes(y.type));
        workspace = std::make_unique<Buffer>(static_cast<size_t>(mtmambaHarnessWorkspaceBytes(plugin)));
        cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    }
    ~Context() {
        cudaStreamDestroy(stream);
        mtmambaHarnessDestroy(plugin);
    }
    Context(Context const&) = delete;
    Context& operator=(Context const&) = delete;

    void enqueue(std::vector<void const*> const& inputs) {
        if (mtmambaHarnessEnqueue(plugin, inputs.data(), output->data(), workspace->data(), stream) != 0) {
            failed();
        }
    }

    MtmambaHarnessPlugin* plugin;
    std::unique_ptr<Buffer> output, workspace;
    cudaStream_t stream{};
};

bool check(MtmambaHarness* harness, char const* op, int32_t type, std::vector<MtmambaHarnessTensor> inputs, size_t A) {
    std::vector<std::unique_ptr<Buffer>> buffers;
    std::vector<void const*> addresses;
    for (size_t i = 0; i < inputs.size(); ++i) {
        inputs[i].type = inputs[i].type == kFloat ? kFloat : type;
        buffers.push_back(filled(inputs[i], i == A, static_cast<uint32_t>(i + 1)));
        addresses.push_back(buffers.back()->data());
    }
    Context alone(harness, op, inputs), first(harness, op, inputs), second(harness, op, inputs);
    cuda(cudaDeviceSynchronize()); // all memory is filled: the contexts' streams wait for nothing
    alone.enqueue(addresses);
    cuda(cudaDeviceSynchronize());
    for (int turn = 0; turn < kTurns; ++turn) {
        first.enqueue(addresses);
        second.enqueue(addresses);
    }
    cuda(cudaDeviceSynchronize());
    auto const y = alone.output->host();
    bool const good = finite(y, type) && y == first.output->host() && y == second.output->host();
    std::printf("%s, type %d: %s\n", op, type, good ? "ok" : "failed: not finite, or other bits in other contexts");
    return good;
}

bool checkAll(char const* library) {
    std::unique_ptr<MtmambaHarness, void (*)(MtmambaHarness*)> const harness(mtmambaHarnessOpen(library),
                                                                             &mtmambaHarnessClose);
    if (!harness) {
        failed();
    }
    constexpr int32_t T = kHalf; // whichever is checked; kFloat: always that
    bool good = true;
    for (int32_t type : {kFloat, kHalf, kBFloat16}) {
        good &= check(harness.get(), "SelectiveScan", type,
                      {{T, 3, {2, 40, 77}},
                       {T, 3, {2, 40, 77}},
                       {kFloat, 2, {40, 16}},
                       {T, 4, {2, 4, 16, 77}},
                       {T, 4, {2, 4, 16, 77}},
                       {kFloat, 1, {40}},
                       {kFloat, 1, {40}}},
                      2);
        good &= check(harness.get(), "SelectiveScan2D", type,
                      {{T, 5, {1, 2, 40, 7, 11}},
                       {T, 6, {1, 2, 4, 35, 7, 11}},
                       {kFloat, 4, {2, 4, 40, 3}},
                       {kFloat, 3, {2, 4, 40}},
                       {kFloat, 4, {2, 4, 40, 16}},
                       {kFloat, 3, {2, 4, 40}}},
                      4);
    }
    return good;
}

} // namespace

int main(int argc, char** argv) {
    if (argc != 2) {
        std::fprintf(stderr, "usage: %s LIBRARY\n", argv[0]);
        return 2;
    }
    int gpus = 0;
    if (cudaGetDeviceCount(&gpus) != cudaSuccess || gpus == 0) {
        std::puts("skipped: no GPU");
        return 77;
    }
    try {
        return checkAll(argv[1]) ? 0 : 1;
    } catch (std::exception const& error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
}
