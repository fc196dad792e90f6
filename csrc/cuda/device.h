// What the bindings ask of the CUDA runtime, for files that the host's compiler reads.
#pragma once
#include <cstdint>

#include "ops.h"

namespace convgrad::cuda {

// The calling thread's device. RuntimeError where there is no driver or no GPU.
int current_device(const char* op);
void set_device(const char* op, int device);
int device_count(const char* op);

// Where kernels on the device report values: pinned memory, one struct per device, never freed.
ValueError* errors_of(const char* op, int device);

// Copies host memory to the device on exec's stream, by kernels that have it in their parameters:
// unlike a copy from pageable memory that neither waits nor reads the source later, and a graph
// that captures it keeps the values. `device` has room for bytes rounded up to 4.
void upload(const Exec& exec, const void* host, int64_t bytes, void* device);

// Waits for everything on the current device.
void synchronize(const char* op);

}  // namespace convgrad::cuda
