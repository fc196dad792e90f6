// What the lanes of a warp do together, asynchronous copies, and 16-bit numbers.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "cuda/sim/access.h"
#include "cuda/sim/machine.h"
#include "cuda/sim/ptx.h"
#include "cuda/sim/source.h"

namespace convgrad::cuda::sim {
namespace {

template <class F>
void for_lanes(unsigned mask, F f) {
  for (unsigned bits = mask; bits != 0; bits &= bits - 1) f(unsigned(std::countr_zero(bits)));
}

// ---- shuffles and votes ----

struct Shuffle {
  uint64_t value, result;
  int source;
};

void shuffle_lanes(void* const* operands, unsigned mask) {
  for_lanes(mask, [&](unsigned lane) {
    Shuffle& mine = *static_cast<Shuffle*>(operands[lane]);
    const unsigned source = mine.source < 0 ? lane : unsigned(mine.source);
    mine.result = mask >> source & 1 ? static_cast<Shuffle*>(operands[source])->value : 0;
  });
}

struct Ballot {
  bool predicate;
  unsigned result;
};

void ballot_lanes(void* const* operands, unsigned mask) {
  unsigned result = 0;
  for_lanes(mask, [&](unsigned lane) {
    result |= unsigned(static_cast<Ballot*>(operands[lane])->predicate) << lane;
  });
  for_lanes(mask, [&](unsigned lane) { static_cast<Ballot*>(operands[lane])->result = result; });
}

// __syncwarp: also makes what was before visible, if the whole warp takes part.
void sync_lanes(void* const*, unsigned mask) {
  Warp& warp = machine.warp[machine.current->warp];
  if (mask == warp.existing) end_warp_epoch(warp);
}

// ---- tensor cores ----

struct Product {
  float* d;
  const uint32_t *a, *b;
};

float tf32_value(uint32_t bits) { return std::bit_cast<float>(bits & ~0x1fffu); }

template <Mma kType>
float element(uint32_t word, int which) {
  if constexpr (kType == Mma::kTf32) return tf32_value(word);
  const uint16_t bits = uint16_t(word >> 16 * which);
  return kType == Mma::kBf16 ? float(std::bit_cast<bfloat16>(bits))
                             : float(std::bit_cast<float16>(bits));
}

// x without the bits below 2^lowest: rounded towards zero. x is finite.
double cut_off(double x, int lowest) {
  const uint64_t bits = std::bit_cast<uint64_t>(x);
  const int below = lowest + 52 - (int(bits >> 52 & 2047) - 1023);  // bits of the mantissa to go
  if (below > 52) return 0;
  return below <= 0 ? x : std::bit_cast<double>(bits & ~uint64_t{0} << below);
}

// What a tensor core makes of n terms, exact in double: it aligns them to the largest, cuts off
// what lies below that one's 24th bit, adds and cuts the sum off to a float. Published measurements
// agree on this, but for one to three more bits on cards since Ampere and the number of terms added
// together (Fasi et al. 2021, doi 10.7717/peerj-cs.330; Khattak and Mikaitis 2025, arXiv
// 2512.07004): no card's error should be larger.
float aligned_sum(const double* term, int n) {
  uint64_t largest = 0;
  for (int i = 0; i < n; ++i)
    largest = std::max(largest, std::bit_cast<uint64_t>(term[i]) >> 52 & 2047);
  double sum = 0;
  if (largest == 2047) {  // an infinity or NaN
    for (int i = 0; i < n; ++i) sum += term[i];
    return float(sum);
  }
  for (int i = 0; i < n; ++i) sum += cut_off(term[i], int(largest) - 1023 - 23);
  const float nearest = float(sum);
  if (std::fabs(double(nearest)) <= std::fabs(sum) || std::isinf(nearest)) return nearest;
  return std::nextafter(nearest, 0.0f);
}

// The lane maps of ptx.cuh.
template <Mma kType>
void multiply_lanes(void* const* operands, unsigned) {
  constexpr int kDepth = kType == Mma::kTf32 ? 8 : 16, kPacked = kType == Mma::kTf32 ? 1 : 2;
  constexpr int kColumnStep = 4 * kPacked;
  double a[16][kDepth], b[8][kDepth];
  for (int lane = 0; lane < 32; ++lane) {
    const Product& p = *static_cast<Product*>(operands[lane]);
    const int group = lane / 4, member = lane % 4 * kPacked;
    for (int i = 0; i < 4; ++i)
      for (int e = 0; e < kPacked; ++e)
        a[group + 8 * (i % 2)][member + kColumnStep * (i / 2) + e] = element<kType>(p.a[i], e);
    for (int i = 0; i < 2; ++i)
      for (int e = 0; e < kPacked; ++e)
        b[group][member + kColumnStep * i + e] = element<kType>(p.b[i], e);
  }
  for (int lane = 0; lane < 32; ++lane) {
    float* d = static_cast<Product*>(operands[lane])->d;
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
      double term[kDepth + 1];
      for (int k = 0; k < kDepth; ++k) term[k] = a[row][k] * b[column][k];
      term[kDepth] = d[i];
      d[i] = aligned_sum(term, kDepth + 1);
    }
  }
}

struct MatrixLoad {
  const unsigned char* row;
  uint32_t* r;
  Site site;
};

template <bool kTransposed>
void load_lanes(void* const* operands, unsigned) {
  for (unsigned lane = 0; lane < 32; ++lane) {
    Thread& thread = machine.thread[machine.current->warp * kLanes + lane];
    const MatrixLoad& mine = *static_cast<MatrixLoad*>(operands[lane]);
    const auto load = [&](unsigned matrix, unsigned row, unsigned column) {
      const unsigned char* p =
          static_cast<MatrixLoad*>(operands[8 * matrix + row])->row + 2 * column;
      access(thread, Access::kRead, p, 2, mine.site);
      uint16_t bits;
      std::memcpy(&bits, p, 2);
      return bits;
    };
    for (unsigned i = 0; i < 4; ++i) {
      uint32_t word = 0;
      for (unsigned e = 0; e < 2; ++e) {
        const unsigned row = kTransposed ? 2 * (lane % 4) + e : lane / 4;
        const unsigned column = kTransposed ? lane / 4 : 2 * (lane % 4) + e;
        word |= uint32_t{load(i, row, column)} << 16 * e;
      }
      mine.r[i] = word;
    }
  }
}

}  // namespace

uint64_t warp_shuffle(const char* name, unsigned mask, uint64_t value, int source, Site site) {
  if (source >= 0 && !(mask >> source & 1))
    fail("absent lane",
         std::string(name) + ", mask " + hex(mask) + ", from lane " + std::to_string(source) +
             " which is not in it",
         site);
  Shuffle operand{value, 0, source};
  warp_operation(name, mask, &operand, shuffle_lanes, site);
  return operand.result;
}

unsigned warp_ballot(const char* name, unsigned mask, bool predicate, Site site) {
  Ballot operand{predicate, 0};
  warp_operation(name, mask, &operand, ballot_lanes, site);
  return operand.result;
}

void sync_warp(unsigned mask, Site site) {
  warp_operation("__syncwarp", mask, nullptr, sync_lanes, site);
}

void mma(const char* name, Mma type, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
         Site site) {
  Product operand{d, a, b};
  constexpr WarpFunction kMultiply[] = {multiply_lanes<Mma::kTf32>, multiply_lanes<Mma::kBf16>,
                                        multiply_lanes<Mma::kF16>};
  warp_operation(name, 0xffffffffu, &operand, kMultiply[int(type)], site);
}

void load_matrix_x4(const char* name, uint32_t (&r)[4], const void* shared, bool transposed,
                    Site site) {
  check_shared(name, shared, 16, site);
  MatrixLoad operand{static_cast<const unsigned char*>(shared), r, site};
  warp_operation(name, 0xffffffffu, &operand, transposed ? load_lanes<true> : load_lanes<false>,
                 site);
}

// ---- asynchronous copies ----

void copy_async(void* shared, const void* global, unsigned bytes, bool valid, Site site) {
  Thread& thread = *machine.current;
  check_shared("copy_async", shared, bytes, site);
  if (reinterpret_cast<uintptr_t>(global) % bytes != 0)
    fail("misaligned",
         "copy_async of " + std::to_string(bytes) + " bytes from " +
             hex(reinterpret_cast<uintptr_t>(global)),
         site);
  if (valid) access(thread, Access::kRead, global, bytes, site);
  access(thread, Access::kWrite, shared, bytes, site);
  std::memset(shared, 0xFF, bytes);
  std::memset(memory.state + memory.offset(shared), kAllocated | kUnderWay, bytes);
  thread.copies.push_back({shared, global, bytes, valid, thread.groups, site});
}

void copy_async_commit() { ++machine.current->groups; }

void copy_async_wait(unsigned pending) {
  Thread& thread = *machine.current;
  size_t landed = 0;
  for (const AsyncCopy& copy : thread.copies) {
    // Groups are closed in order; the last `pending` may still be under way.
    if (copy.group >= thread.groups || thread.groups - copy.group <= pending) break;
    ++landed;
    std::memset(memory.state + memory.offset(copy.shared), kReadable, copy.bytes);
    access(thread, Access::kWrite, copy.shared, copy.bytes, copy.site);
    if (copy.valid) {
      std::memcpy(copy.shared, copy.global, copy.bytes);
    } else {
      std::memset(copy.shared, 0, copy.bytes);
    }
  }
  thread.copies.erase(thread.copies.begin(), thread.copies.begin() + ptrdiff_t(landed));
}

void check_copies_landed() {
  const Thread& thread = *machine.current;
  if (thread.copies.empty()) return;
  fail("asynchronous copy",
       "the thread ended with " + std::to_string(thread.copies.size()) +
           " copies under way, the first one's begun at this line",
       thread.copies.front().site);
}

// ---- numbers ----

uint32_t to_tf32(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if (std::isnan(x)) return 0x7fffffffu;
  if (std::isinf(x)) return bits;
  return (bits + 0x1000u) & ~0x1fffu;  // the magnitude grows at a tie
}

}  // namespace convgrad::cuda::sim
