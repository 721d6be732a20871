// Runs a TensorRT plugin without TensorRT: opens a plugin library, creates a plugin through its creator, takes it
// through what a builder and an execution context would ask of it, and calls enqueue on device buffers. A C interface,
// for any language.
//
// Functions that answer a pointer answer NULL, and those that answer int32_t anything but 0, where they fail;
// mtmambaHarnessError() then says why, in one line, the plugin's own words included. One thread at a time for one
// library; the library's log callback is the harness's while it is open, so open a copy of a file that TensorRT has
// loaded in this process.
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct MtmambaHarness MtmambaHarness;             // an open plugin library
typedef struct MtmambaHarnessPlugin MtmambaHarnessPlugin; // a plugin, configured for fixed sizes

// type: of nvinfer1::DataType (0 float32, 1 float16, 7 bfloat16).
typedef struct {
    int32_t type;
    int32_t rank;
    int64_t dims[8];
} MtmambaHarnessTensor;

// An INT32 attribute of the operator.
typedef struct {
    char const* name;
    int32_t value;
} MtmambaHarnessAttribute;

// What went wrong last in this thread; "" before anything did. Valid until this thread's next call.
char const* mtmambaHarnessError(void);

MtmambaHarness* mtmambaHarnessOpen(char const* library);
void mtmambaHarnessClose(MtmambaHarness* harness); // after every plugin made with it was destroyed

// The plugin `op`, built for these inputs as TensorRT would: formats and types of every tensor asked, output type and
// shape taken from the plugin, configured, its fields serialised, created again for run time, attached to a context,
// told the shapes.
MtmambaHarnessPlugin* mtmambaHarnessCreate(MtmambaHarness* harness, char const* op,
                                           MtmambaHarnessAttribute const* attributes, int32_t attributeCount,
                                           MtmambaHarnessTensor const* inputs, int32_t inputCount);
void mtmambaHarnessDestroy(MtmambaHarnessPlugin* plugin);

MtmambaHarnessTensor mtmambaHarnessOutput(MtmambaHarnessPlugin const* plugin);
int64_t mtmambaHarnessWorkspaceBytes(MtmambaHarnessPlugin const* plugin);

// Enqueues on the stream (a cudaStream_t). inputs: device addresses in the operator's order, contiguous. workspace: of
// mtmambaHarnessWorkspaceBytes, NULL where that is 0. Neither waits nor allocates.
int32_t mtmambaHarnessEnqueue(MtmambaHarnessPlugin* plugin, void const* const* inputs, void* output, void* workspace,
                              void* stream);

#ifdef __cplusplus
}
#endif
