#include "cuda/device.h"

#include <cstring>
#include <mutex>

#include "cuda/launch.cuh"

namespace convgrad::cuda {
namespace {

constexpr int kMaxDevices = 64;
constexpr int kUploadWords = 1000;  // parameters hold 4 KB on every GPU
constexpr int kThreads = 128;

struct Words {
  uint32_t word[kUploadWords];
};

__global__ void store_words(const Words words, int count, uint32_t* to) {
  for (int i = int(threadIdx.x); i < count; i += kThreads) to[i] = words.word[i];
}

// Not in errors_of(), nor atomic: the simulator has no hooks for what those would be compiled to.
std::mutex errors_mutex;
ValueError* errors[kMaxDevices];

}  // namespace

int current_device(const char* op) {
  int device = 0;
  check(cudaGetDevice(&device), op);
  return device;
}

void set_device(const char* op, int device) { check(cudaSetDevice(device), op); }

int device_count(const char* op) {
  int count = 0;
  check(cudaGetDeviceCount(&count), op);
  return count;
}

ValueError* errors_of(const char* op, int device) {
  if (device < 0 || device >= kMaxDevices)
    throw std::runtime_error("[" + std::string(op) + "] A device's number must be below " +
                             std::to_string(kMaxDevices) + ". Got " + std::to_string(device) + ".");
  const std::lock_guard<std::mutex> lock(errors_mutex);
  if (errors[device] != nullptr) return errors[device];
  void* memory = nullptr;
  check(cudaHostAlloc(&memory, sizeof(ValueError), cudaHostAllocPortable | cudaHostAllocMapped),
        op);
  std::memset(memory, 0, sizeof(ValueError));
  return errors[device] = static_cast<ValueError*>(memory);
}

void upload(const Exec& exec, const void* host, int64_t bytes, void* device) {
  constexpr int64_t kBytes = sizeof(Words);
  for (int64_t at = 0; at < bytes; at += kBytes) {
    const int64_t part = std::min(bytes - at, kBytes);
    Words words{};
    std::memcpy(&words, static_cast<const char*>(host) + at, size_t(part));
    launch(exec, store_words, dim3(1), dim3(kThreads), 0, words, int(ceil_div(part, 4)),
           reinterpret_cast<uint32_t*>(static_cast<char*>(device) + at));
  }
}

void synchronize(const char* op) { check(cudaDeviceSynchronize(), op); }

}  // namespace convgrad::cuda
