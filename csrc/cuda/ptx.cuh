// All inline assembly: asynchronous copies into shared memory and the tensor cores. The simulator
// has its own versions of these functions (sim/ptx.h), with the same meaning.
#pragma once
#include "cuda/launch.cuh"

#if !defined(__CUDACC__)
#include "cuda/sim/ptx.h"
#else
namespace convgrad::cuda {

__device__ inline unsigned shared_address(const void* p) {
  return static_cast<unsigned>(__cvta_generic_to_shared(p));
}

// Begins to copy kBytes (4, 8 or 16) from global to shared memory, or zeros unless `valid`: then
// nothing is read from `global`. Both addresses are multiples of kBytes.
template <int kBytes>
__device__ inline void copy_async(void* shared, const void* global, bool valid) {
  const int bytes = valid ? kBytes : 0;
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(shared)),
                 "l"(global), "r"(bytes));
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;\n" ::"r"(shared_address(shared)),
                 "l"(global), "n"(kBytes), "r"(bytes));
  }
}
// Closes the group of copies begun since the last commit.
__device__ inline void copy_async_commit() { asm volatile("cp.async.commit_group;\n" ::); }
// Waits until at most kPending of this thread's groups are under way. Other threads see what
// arrived after the next __syncthreads().
template <int kPending>
__device__ inline void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending));
}

// x rounded to TF32 (10 bits of mantissa), to nearest, ties away from zero.
__device__ inline uint32_t to_tf32(float x) {
  uint32_t y;
  asm("cvt.rna.tf32.f32 %0, %1;\n" : "=r"(y) : "f"(x));
  return y;
}

// d += a b by a warp, a (16, 8), b (8, 8), d (16, 8). With group = lane / 4, member = lane % 4:
//   a[i] = A[group + 8 (i % 2)][member + 4 (i / 2)]
//   b[i] = B[member + 4 i][group]
//   d[i] = D[group + 8 (i / 2)][2 member + i % 2]
__device__ inline void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// The same for 16-bit numbers, a (16, 16), b (16, 8), two of them per register, the lower first:
//   a[i] = A[group + 8 (i % 2)][2 member + 8 (i / 2) + {0, 1}]
//   b[i] = B[2 member + 8 i + {0, 1}][group]
//   d as above
__device__ inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ inline void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Four 8x8 matrices of 16-bit numbers from shared memory by a warp: lane 8 i + r gives the address
// of row r (16 bytes, aligned) of matrix i, and gets, in r[i], the two elements [lane / 4][2 (lane
// % 4) + {0, 1}] of matrix i; transposed: [2 (lane % 4) + {0, 1}][lane / 4].
__device__ inline void load_matrix_x4(uint32_t (&r)[4], const void* shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(shared)));
}
__device__ inline void load_matrix_x4_transposed(uint32_t (&r)[4], const void* shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(shared)));
}

}  // namespace convgrad::cuda
#endif
