// The simulator as host code sees it: the part of the CUDA runtime that convgrad calls, under its
// own names, and what only the simulator has. Host code of a module built with CONVGRAD_SIM
// includes this instead of <cuda_runtime_api.h>; kernels include it by launch.cuh.
//
// Two devices are simulated. A launch has run when it returns, and an error in a kernel is a
// std::runtime_error thrown by launch(); but see stream.cpp for captured and replayed work and
// what follows it: its errors are thrown by the call that waits.
#pragma once
#include <cstddef>
#include <cstdint>

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInvalidDevice = 101,
  cudaErrorInvalidResourceHandle = 400,
  cudaErrorIllegalState = 401,
  cudaErrorNotReady = 600,
  cudaErrorStreamCaptureUnsupported = 900,
  cudaErrorStreamCaptureInvalidated = 901,
};
struct CUstream_st;  // nullptr: the current device's default stream
using cudaStream_t = CUstream_st*;
using cudaEvent_t = struct CUevent_st*;
using cudaGraph_t = struct CUgraph_st*;
using cudaGraphExec_t = struct CUgraphExec_st*;
enum cudaMemcpyKind {
  cudaMemcpyHostToHost = 0,
  cudaMemcpyHostToDevice = 1,
  cudaMemcpyDeviceToHost = 2,
  cudaMemcpyDeviceToDevice = 3,
  cudaMemcpyDefault = 4,
};
constexpr unsigned cudaHostAllocDefault = 0, cudaHostAllocPortable = 1, cudaHostAllocMapped = 2;
constexpr unsigned cudaStreamNonBlocking = 1;
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };

cudaError_t cudaGetLastError();
const char* cudaGetErrorName(cudaError_t error);
const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaGetDevice(int* device);  // of the calling OS thread
cudaError_t cudaSetDevice(int device);
cudaError_t cudaDeviceSynchronize();
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamGetDevice(cudaStream_t stream, int* device);
cudaError_t cudaStreamBeginCapture(cudaStream_t stream);  // CUDA's relaxed mode
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, bool* capturing);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph);
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec);
cudaError_t cudaEventCreate(cudaEvent_t* event);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventQuery(cudaEvent_t event);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event);
cudaError_t cudaMalloc(void** p, size_t bytes);  // on the current device, not initialised
cudaError_t cudaFree(void* p);
template <class T>
cudaError_t cudaMalloc(T** p, size_t bytes) {
  return cudaMalloc(reinterpret_cast<void**>(p), bytes);
}
cudaError_t cudaHostAlloc(void** p, size_t bytes, unsigned flags);  // host and devices see it
cudaError_t cudaFreeHost(void* p);
cudaError_t cudaMemcpy(void* dst, const void* src, size_t bytes, cudaMemcpyKind kind);
cudaError_t cudaMemcpyAsync(void* dst, const void* src, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream);
cudaError_t cudaMemset(void* p, int value, size_t bytes);
cudaError_t cudaMemsetAsync(void* p, int value, size_t bytes, cudaStream_t stream);

namespace convgrad::cuda::sim {

constexpr int kDevices = 2;

// ---- device memory; plain host memory too, which NumPy can view at the same address ----
// `bytes` of a device's memory, 512-byte aligned, between guards, filled with 0xFF (NaN) and marked
// uninitialised; nullptr if there is none. 0 bytes are a valid block that nothing may access.
void* allocate(size_t bytes, int device);
// Gives a block back: kernels that use it from now on are in error. nullptr does nothing; an
// address that allocate() did not return throws std::invalid_argument.
void release(void* p);
// The device whose memory p lies in; -1 for host memory, also that of cudaHostAlloc.
int device_of(const void* p);
// All bytes lie in one live block (of a device or of cudaHostAlloc).
bool is_allocated(const void* p, size_t bytes);
// Host code wrote these bytes (NumPy, by the address): kernels may read them.
void mark_written(void* p, size_t bytes);
// Forgets what was written, and fills with 0xFF: a block as new, for memory pools.
void mark_unwritten(void* p, size_t bytes);
// Whether all bytes were written, by the host or by kernels.
bool is_initialised(const void* p, size_t bytes);
size_t bytes_in_use(int device);

// ---- how kernels run; at first from the environment ----
// CONVGRAD_SIM_SEED, default 2: the order of threads and blocks, 0: ascending, 1: descending, from
// 2 on at random.
void set_seed(uint64_t seed);
uint64_t seed();
// CONVGRAD_SIM_CHECK, default 1: whether every memory access of kernels is checked (about 20 times
// slower than without). Barriers and warp operations always are.
void set_check(bool on);
bool check();

}  // namespace convgrad::cuda::sim
