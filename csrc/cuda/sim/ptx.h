// The functions of ptx.cuh for kernels compiled for the host. Their meaning is documented there.
#pragma once
#include "cuda/sim/device.h"

namespace convgrad::cuda {
namespace sim {

void copy_async(void* shared, const void* global, unsigned bytes, bool valid, Site site);
void copy_async_commit();
void copy_async_wait(unsigned pending);
enum class Mma { kTf32, kBf16, kF16 };
void mma(const char* name, Mma type, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
         Site site);
void load_matrix_x4(const char* name, uint32_t (&r)[4], const void* shared, bool transposed,
                    Site site);
uint32_t to_tf32(float x);

}  // namespace sim

template <int kBytes>
void copy_async(void* shared, const void* global, bool valid, SIM_SITE) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  sim::copy_async(shared, global, kBytes, valid, site);
}
inline void copy_async_commit() { sim::copy_async_commit(); }
template <int kPending>
void copy_async_wait() {
  sim::copy_async_wait(kPending);
}

inline uint32_t to_tf32(float x) { return sim::to_tf32(x); }

inline void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], SIM_SITE) {
  sim::mma("mma_tf32", sim::Mma::kTf32, d, a, b, site);
}
inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], SIM_SITE) {
  sim::mma("mma_bf16", sim::Mma::kBf16, d, a, b, site);
}
inline void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], SIM_SITE) {
  sim::mma("mma_f16", sim::Mma::kF16, d, a, b, site);
}
inline void load_matrix_x4(uint32_t (&r)[4], const void* shared, SIM_SITE) {
  sim::load_matrix_x4("load_matrix_x4", r, shared, false, site);
}
inline void load_matrix_x4_transposed(uint32_t (&r)[4], const void* shared, SIM_SITE) {
  sim::load_matrix_x4("load_matrix_x4_transposed", r, shared, true, site);
}

}  // namespace convgrad::cuda
