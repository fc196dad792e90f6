// Matrix products C (M, N) = A (M, K) B (N, K)' of float32, bfloat16 or float16 in tiles: the main
// loop under convolution (conv_gemm.cuh), its weight gradient (conv_weight_gemm.cuh) and gemm
// (linear_gemm.cuh), which differ only in how they fetch their operands and write their results.
//
// Tiles. A block of threads computes a Tile of kM x kN elements of C, each of its warps one of
// kWarpM x kWarpN, from slices of 128 bytes' columns of A and B ("k-tiles") in shared memory: 32 of
// float32, 64 of 16 bits.
//
// Pipeline. kStages slices of shared memory: while the warps multiply k-tile t, the asynchronous
// copies of t + 1 ... t + kStages - 1 are under way. One barrier per k-tile: after it, everything
// of t has arrived for every thread, and no thread still reads t - 1, whose slice is filled next.
//
// Slices in shared memory. Where an operand lies with its K axis contiguous (Major::kK), a slice is
// rows of 128 bytes, eight chunks of 16 bytes, chunk c of row r being stored as chunk c ^ (r % 8):
// then both the copies (a row's eight chunks by eight lanes) and ldmatrix (a chunk of eight rows)
// touch every bank once. Where its rows are contiguous (Major::kRows), a slice is lines of rows,
// one per k. float32: element (k, r) of a line is stored at r ^ (8 (k % 4)): the four lines and
// eight rows of a fragment lie in 32 banks. 16 bits: chunk c of line k is stored so that the chunks
// c of eight lines, which ldmatrix reads together, lie in different banks.
//
// Lanes. ptx.cuh has the fragments of mma.m16n8k8 and m16n8k16. The A and B fragments of the
// former, 32-bit elements, are what ldmatrix gives of 8 x 4 floats seen as 8 x 8 halves; its slices
// with contiguous rows are read element by element. Those of 16 bits are transposed by ldmatrix.
//
// Math. k16 multiplies 16-bit numbers, exactly, and leaves the sums to the tensor cores, in
// float32; what is done to the sum is done in float32 too, and it is rounded once. kTf32x3 is
// float32 arithmetic: x = big + small with big = tf32(x), small = tf32(x - big), and a b = big big
// + big small + small big, but for some 2^-23 of it. The tensor cores round their sums towards
// zero, so they add eight terms only; these sums are added in plain float32. kTf32 is big big
// alone, summed by the tensor cores. kFma uses no tensor core: one thread 8 x 8 elements.
#pragma once
#include <type_traits>

#include "cuda/kernels/finish.cuh"
#include "cuda/ptx.cuh"

namespace convgrad::cuda {
namespace {

enum class Math { kTf32x3, kTf32, kFma, k16 };
enum class Major { kK, kRows };

template <class T>
constexpr int kTileK = 128 / int(sizeof(T));  // every bank once
// Elements of a whole chunk, 16 bytes.
template <class T>
constexpr int kWhole = 16 / int(sizeof(T));
// Columns of K that one mma multiplies.
template <class T>
constexpr int kStepK = 32 / int(sizeof(T));
// Bytes of shared memory that a block may have on every card: on those of capability 8.6, 8.9 and
// 12.0.
constexpr int kMostShared = 99 * 1024;
// Terms that kFma, which has one accumulator per element, may sum in one run.
constexpr int64_t kMostFmaTerms = 4096;
// Channels of a convolution's group for tiles to be worth it.
constexpr int64_t kLeastGroupChannels = 16;

template <int M, int N, int WarpM, int WarpN, int Stages, int Blocks>
struct Tile {
  static constexpr int kM = M, kN = N, kWarpM = WarpM, kWarpN = WarpN, kStages = Stages;
  static constexpr int kBlocks = Blocks;  // that share a multiprocessor, by memory and registers
  static constexpr bool kLarge = (M + N) * Stages * 128 > 90 * 1024;  // bytes of its stages
  static constexpr int kThreads = M / WarpM * (N / WarpN) * kWarp;
};

// One operand's slice of `kRows` rows.
template <class T, Major kMajor, int kRows>
struct alignas(128) Slice {
  T v[kRows * kTileK<T>];

  static __device__ unsigned at(unsigned row, unsigned k) {
    constexpr unsigned kChunk = kWhole<T>;
    if constexpr (kMajor == Major::kK) {
      return row * kTileK<T> + ((k / kChunk ^ row % 8) * kChunk + k % kChunk);
    } else if constexpr (sizeof(T) == sizeof(float)) {
      return k * kRows + (row ^ k % 4 * 8);
    } else {
      constexpr unsigned kChunks = kRows / kChunk < 8 ? kRows / kChunk : 8;  // of 128 bytes' lines
      return k * kRows + (row ^ k / (8 / kChunks) % kChunks * kChunk);
    }
  }
};

// Four 8 x 8 (float32: 8 x 4) matrices of a slice: number i holds the rows from row + 8 (i / 2) and
// the columns from k + step (i % 2), or the other way round where `rows_first`.
template <bool kRowsFirst, class T, Major kMajor, int kRows>
__device__ void load_matrices(const Slice<T, kMajor, kRows>& s, int row, int k, uint32_t (&v)[4]) {
  constexpr int kHalf = kStepK<T> / 2;
  const unsigned lane = threadIdx.x % kWarp;
  if constexpr (kMajor == Major::kRows && sizeof(T) == sizeof(float)) {
    const unsigned group = lane / 4, member = lane % 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int down = kRowsFirst ? i % 2 : i / 2, right = kRowsFirst ? i / 2 : i % 2;
      v[i] = __float_as_uint(s.v[s.at(row + group + down * 8, k + member + right * kHalf)]);
    }
  } else {
    const unsigned matrix = lane / 8;
    const unsigned down = kRowsFirst ? matrix % 2 : matrix / 2;
    const unsigned right = kRowsFirst ? matrix / 2 : matrix % 2;
    if constexpr (kMajor == Major::kK)
      load_matrix_x4(v, &s.v[s.at(row + down * 8 + lane % 8, k + right * kHalf)]);
    else
      load_matrix_x4_transposed(v, &s.v[s.at(row + down * 8, k + right * kHalf + lane % 8)]);
  }
}
// The A fragment of rows [row, row + 16) and columns [k, k + kStepK).
template <class S>
__device__ void load_fragment_a(const S& s, int row, int k, uint32_t (&a)[4]) {
  load_matrices<true>(s, row, k, a);
}
// The B fragments of rows [row, row + 8) and [row + 8, row + 16) and columns [k, k + kStepK).
template <class S>
__device__ void load_fragments_b(const S& s, int row, int k, uint32_t (&b)[4]) {
  load_matrices<false>(s, row, k, b);
}

// bits = big + small: big is rounded to TF32's 11 bits, of the 12 that are left the tensor cores
// read
// 11. Three instructions; cvt.rna alone is three. Infinity and what rounds to it give NaN: an
// infinite big has no small, and NaN is NaN in one of the two.
__device__ inline void split_tf32(uint32_t bits, uint32_t& big, uint32_t& small) {
  big = (bits + 0x1000u) & 0xffffe000u;
  small = __float_as_uint(__uint_as_float(bits) - __uint_as_float(big));
}

// The product of two numbers' bits, added by the tensor cores.
template <class T>
__device__ void mma_16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (std::is_same_v<T, bfloat16>)
    mma_bf16(d, a, b);
  else
    mma_f16(d, a, b);
}

// The part of C that a thread holds: multiply() adds the product of two slices, write() puts it
// into the tile c (kM, kPitch).
template <class T, class Tile, Math kMath, Major kMajorA, Major kMajorB>
struct Accumulators {
  using SliceA = Slice<T, kMajorA, Tile::kM>;
  using SliceB = Slice<T, kMajorB, Tile::kN>;
  static constexpr int kTilesM = Tile::kWarpM / 16, kTilesN = Tile::kWarpN / 8;
  static constexpr int kWarpsN = Tile::kN / Tile::kWarpN;
  float v[kTilesM][kTilesN][4] = {};

  static __device__ int first_row() { return int(threadIdx.x / kWarp / kWarpsN * Tile::kWarpM); }
  static __device__ int first_column() { return int(threadIdx.x / kWarp % kWarpsN * Tile::kWarpN); }

  __device__ void multiply(const SliceA& a, const SliceB& b) {
    if constexpr (kMath == Math::k16) {
#pragma unroll
      for (int k = 0; k < kTileK<T>; k += kStepK<T>) multiply_16(a, b, k);
    } else {
#pragma unroll 1  // unrolled, it runs out of registers
      for (int k = 0; k < kTileK<T>; k += kStepK<T>) multiply_32(a, b, k);
    }
  }

  __device__ void multiply_16(const SliceA& a, const SliceB& b, int k) {
    uint32_t own_b[kTilesN][2];
#pragma unroll
    for (int j = 0; j < kTilesN; j += 2) {
      uint32_t pair[4];
      load_fragments_b(b, first_column() + j * 8, k, pair);
#pragma unroll
      for (int i = 0; i < 4; ++i) own_b[j + i / 2][i % 2] = pair[i];
    }
#pragma unroll
    for (int i = 0; i < kTilesM; ++i) {
      uint32_t own_a[4];
      load_fragment_a(a, first_row() + i * 16, k, own_a);
#pragma unroll
      for (int j = 0; j < kTilesN; ++j) mma_16<T>(v[i][j], own_a, own_b[j]);
    }
  }

  __device__ void multiply_32(const SliceA& a, const SliceB& b, int k) {
    constexpr bool kExact = kMath == Math::kTf32x3;
    uint32_t b_big[kTilesN][2], b_small[kTilesN][2];
#pragma unroll
    for (int j = 0; j < kTilesN; j += 2) {
      uint32_t raw[4];
      load_fragments_b(b, first_column() + j * 8, k, raw);
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if constexpr (kExact)
          split_tf32(raw[i], b_big[j + i / 2][i % 2], b_small[j + i / 2][i % 2]);
        else
          b_big[j + i / 2][i % 2] = to_tf32(__uint_as_float(raw[i]));
    }
#pragma unroll
    for (int i = 0; i < kTilesM; ++i) {
      uint32_t raw[4], a_big[4], a_small[4];
      load_fragment_a(a, first_row() + i * 16, k, raw);
#pragma unroll
      for (int r = 0; r < 4; ++r)
        if constexpr (kExact)
          split_tf32(raw[r], a_big[r], a_small[r]);
        else
          a_big[r] = to_tf32(__uint_as_float(raw[r]));
      if constexpr (kExact) {
#pragma unroll
        for (int j = 0; j < kTilesN; ++j) {
          float sum[4] = {};
          mma_tf32(sum, a_small, b_big[j]);
          mma_tf32(sum, a_big, b_small[j]);
          mma_tf32(sum, a_big, b_big[j]);
#pragma unroll
          for (int r = 0; r < 4; ++r) v[i][j][r] += sum[r];
        }
      } else {
#pragma unroll
        for (int j = 0; j < kTilesN; ++j) mma_tf32(v[i][j], a_big, b_big[j]);
      }
    }
  }

  template <int kPitch>
  __device__ void write(float (*c)[kPitch]) const {
    const int group = int(threadIdx.x % kWarp / 4), member = int(threadIdx.x % 4);
#pragma unroll
    for (int i = 0; i < kTilesM; ++i)
#pragma unroll
      for (int j = 0; j < kTilesN; ++j)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          store_pack<2>(
              &c[first_row() + i * 16 + half * 8 + group][first_column() + j * 8 + member * 2],
              Pack<float, 2>{v[i][j][half * 2], v[i][j][half * 2 + 1]});
  }
};

// By plain multiply-adds: a warp is 8 x 4 lanes. With kK lane (i, j) has the rows i, i + 8, ...,
// resp. columns j, j + 4, ...; with kRows runs of four: every read touches 8 or 4 different chunks.
template <class Tile, Major kMajorA, Major kMajorB>
struct Accumulators<float, Tile, Math::kFma, kMajorA, kMajorB> {
  static constexpr int kRows = Tile::kWarpM / 8, kColumns = Tile::kWarpN / 4;
  static constexpr int kWarpsN = Tile::kN / Tile::kWarpN;
  float v[kRows][kColumns] = {};

  static __device__ int row(int i) {
    const int lane = int(threadIdx.x % kWarp / 4);
    const int first = int(threadIdx.x / kWarp / kWarpsN * Tile::kWarpM);
    return first + (kMajorA == Major::kK ? lane + 8 * i : lane * 4 + i / 4 * 32 + i % 4);
  }
  static __device__ int column(int j) {
    const int lane = int(threadIdx.x % 4);
    const int first = int(threadIdx.x / kWarp % kWarpsN * Tile::kWarpN);
    return first + (kMajorB == Major::kK ? lane + 4 * j : lane * 4 + j / 4 * 16 + j % 4);
  }

  __device__ void multiply(const Slice<float, kMajorA, Tile::kM>& a,
                           const Slice<float, kMajorB, Tile::kN>& b) {
    static_assert(kMajorA == kMajorB);
    constexpr bool kAlongK = kMajorA == Major::kK;
#pragma unroll 1
    for (int k = 0; k < kTileK<float>; k += kAlongK ? 4 : 1) {
      // y[j]: four columns of one k, or four k of one column.
      constexpr int kPacks = kAlongK ? kColumns : kColumns / 4;
      Pack<float, 4> y[kPacks];
#pragma unroll
      for (int j = 0; j < kPacks; ++j)
        y[j] = load_pack<4>(&b.v[b.at(column(kAlongK ? j : 4 * j), k)]);
#pragma unroll
      for (int i = 0; i < kRows; i += kAlongK ? 1 : 4) {
        const Pack<float, 4> x = load_pack<4>(&a.v[a.at(row(i), k)]);
#pragma unroll
        for (int e = 0; e < 4; ++e)
#pragma unroll
          for (int j = 0; j < kColumns; ++j)
            if constexpr (kAlongK)
              v[i][j] += x[e] * y[j][e];
            else
              v[i + e][j] += x[e] * y[j / 4][j % 4];
      }
    }
  }

  template <int kPitch>
  __device__ void write(float (*c)[kPitch]) const {
#pragma unroll
    for (int i = 0; i < kRows; ++i)
#pragma unroll
      for (int j = 0; j < kColumns; ++j) c[row(i)][column(j)] = v[i][j];
  }
};

// ---- fetching operands ----

inline bool is_aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

// Which elements of a slice a thread copies: kCount chunks of kChunk elements, of 16 bytes or less.
// float32 that is not in whole chunks, or begins elsewhere, is copied by single elements; 16-bit
// operands are first laid out anew in whole chunks (padded()). With kK they are one chunk of
// columns `line` and rows `first`, first + kStep, ...; with kRows one chunk of rows `line` and
// columns first, ...
template <class T, Major kMajor, int kRows, int kThreads, int kChunk>
struct CopyMap {
  static constexpr int kLine = (kMajor == Major::kK ? kTileK<T> : kRows) / kChunk;
  static constexpr int kStep = kThreads / kLine;
  static constexpr int kCount = kRows * kTileK<T> / kChunk / kThreads;
  static_assert(kThreads % kLine == 0 && kCount * kThreads * kChunk == kRows * kTileK<T>);
  static __device__ unsigned line() { return threadIdx.x % kLine * kChunk; }
  static __device__ unsigned first() { return threadIdx.x / kLine; }
  using SliceT = Slice<T, kMajor, kRows>;
  static __device__ T* target(SliceT& s, int i) {
    const unsigned other = first() + unsigned(i * kStep);
    return &s.v[kMajor == Major::kK ? s.at(other, line()) : s.at(line(), other)];
  }
};

// A matrix in memory: element (row, k) is data[row * pitch + k], or data[k * pitch + row] with
// kRows. k counts from 0 at the first k-tile to be copied.
template <class T, Major kMajor, int kRows, int kThreads, int kChunk>
struct DenseLoader {
  using Map = CopyMap<T, kMajor, kRows, kThreads, kChunk>;
  const T* at;       // the thread's first chunk
  const int& pitch;  // a kernel parameter, so it takes no register
  int rows, k;       // left, from the thread's first chunk on; of rows, resp. columns

  __device__ DenseLoader(const T* data, const int& pitch, int64_t row, int64_t row_count,
                         int64_t first_k, int64_t end_k)
      : pitch(pitch) {
    const int64_t own_row = row + (kMajor == Major::kK ? Map::first() : Map::line());
    const int64_t own_k = first_k + (kMajor == Major::kK ? Map::line() : Map::first());
    at = data + (kMajor == Major::kK ? own_row * pitch + own_k : own_k * pitch + own_row);
    rows = int(row_count - own_row);
    k = int(end_k - own_k);
  }

  // Begins to copy the next k-tile.
  __device__ void load(typename Map::SliceT& s) {
#pragma unroll(kMajor == Major::kK ? 4 : 1)  // for registers
    for (int i = 0; i < Map::kCount; ++i) {
      const int own_rows = kMajor == Major::kK ? rows - i * Map::kStep : rows;
      const int own_k = kMajor == Major::kK ? k : k - i * Map::kStep;
      const bool valid = (own_rows > 0) & (own_k > 0);
      copy_async<kChunk* int(sizeof(T))>(Map::target(s, i), at + int64_t{i * Map::kStep} * pitch,
                                         valid);
    }
    at += kMajor == Major::kK ? kTileK<T> : int64_t{kTileK<T>} * pitch;
    k -= kTileK<T>;
  }
};

// Writes the first `count` elements, all at once where that is all of them and the address allows.
template <class T>
__device__ void store_first(const Pack<float, 4>& v, int count, T* to) {
  Pack<T, 4> out;
#pragma unroll
  for (int i = 0; i < 4; ++i) out[i] = T(v[i]);
  if (count >= 4 && reinterpret_cast<uintptr_t>(to) % sizeof(out) == 0)
    return store_pack<4>(to, out);
  for (int i = 0; i < 4 && i < count; ++i) to[i] = out[i];
}

// ---- 16-bit operands in whole chunks ----

// Asynchronous copies are of at least 4 bytes, so that 16-bit rows of other lengths than multiples
// of 8 are first copied to such rows, the rest being zeros; of up to four elements, as in a first
// layer, to rows of 4. A row of float32 stays as it is.
template <class T>
constexpr int64_t padded(int64_t c) {
  return sizeof(T) != 2 ? c : c <= 4 ? 4 : ceil_div(c, 8) * 8;
}
// Bytes in the workspace, of which every part begins at a multiple of 64.
template <class T>
constexpr int64_t part_bytes(int64_t elements) {
  return ceil_div(elements * int64_t(sizeof(T)), 64) * 64;
}

// to (rows, padded_c) = from (rows, c) and zeros; padded_c is a multiple of 4.
template <class T>
void pad_rows(const Exec& exec, int64_t rows, int64_t c, int64_t padded_c, const T* from, T* to) {
  const int64_t packs = padded_c / 4;
  for_each(exec, rows * packs, [=] __device__(int64_t i) {
    const int64_t row = i / packs, first = i % packs * 4;
    Pack<T, 4> v;
    for (int e = 0; e < 4; ++e) v[e] = first + e < c ? from[row * c + first + e] : T(0);
    store_pack<4>(to + i * 4, v);
  });
}

// ---- slices of K, for products with few tiles: partial sums, added up in order ----

constexpr int64_t kWave = 132 * 2;                   // blocks that fill a large card
constexpr int64_t kLeastTiles = 8;                   // k-tiles of a slice
constexpr int64_t kMostPartial = int64_t{16} << 20;  // elements of all slices' results

struct SlicePlan {
  int64_t slices, tiles_per_slice;
};
// Of `k_tiles` for a product of `blocks` tiles and `results` elements.
inline SlicePlan plan_slices(int64_t blocks, int64_t k_tiles, int64_t results) {
  int64_t slices = min_of(kWave / max_of(1, blocks), k_tiles / kLeastTiles);
  slices = max_of(1, min_of(slices, kMostPartial / max_of(1, results)));
  const int64_t per_slice = max_of(1, ceil_div(k_tiles, slices));
  return {max_of(1, ceil_div(k_tiles, per_slice)), per_slice};
}

// out (rows, columns) = epilogue(the sum of partial (slices, rows, columns) over slices).
template <class T>
void finish_slices(const Exec& exec, int64_t slices, int64_t rows, int64_t columns,
                   const float* partial, const Epilogue<T>& epilogue, T* out) {
  const int64_t size = rows * columns;
  for_each(exec, size, [=] __device__(int64_t i) {
    float sum = 0;
    for (int64_t slice = 0; slice < slices; ++slice) sum += partial[slice * size + i];
    out[i] = T(finish(epilogue, sum, i % columns, i));
  });
}

// ---- the kernel ----

template <class P>
struct GemmShared {
  struct Stages {
    Slice<typename P::Element, P::kMajorA, P::Tile::kM> a[P::Tile::kStages];
    Slice<typename P::Element, P::kMajorB, P::Tile::kN> b[P::Tile::kStages];
  };
  // C's tile, on its way out. The pitch keeps rows of float2, and of float4, in different banks.
  static constexpr int kPitch = P::Tile::kN + 8;
  union {
    Stages stages;
    float c[P::Tile::kM][kPitch];
  };
  typename P::Table table;
};

// k-tiles [0, tiles) of a product, through the pipeline.
template <class Sums, class LoaderA, class LoaderB, class S>
__device__ void multiply_tiles(S& s, int tiles, LoaderA& a, LoaderB& b, Sums& sums) {
  constexpr int kStages = int(sizeof(s.a) / sizeof(s.a[0]));
#pragma unroll
  for (int t = 0; t < kStages - 1; ++t) {
    if (t < tiles) {
      a.load(s.a[t]);
      b.load(s.b[t]);
    }
    copy_async_commit();
  }
  for (int stage = 0; tiles > 0; --tiles) {
    copy_async_wait<kStages - 2>();
    __syncthreads();
    const int next = stage == 0 ? kStages - 1 : stage - 1;  // stage + kStages - 1, modulo kStages
    if (tiles >= kStages) {
      a.load(s.a[next]);
      b.load(s.b[next]);
    }
    copy_async_commit();
    sums.multiply(s.a[stage], s.b[stage]);
    stage = stage + 1 == kStages ? 0 : stage + 1;
  }
  copy_async_wait<0>();
}

// What a block works on. In shared memory, so that it takes no registers in the main loop.
struct Block {
  int pass, group, slice;    // of several
  int row, column;           // the tile's first
  int first_tile, end_tile;  // of K
};

// Problem P: Element, Tile, kMath, kMajorA, kMajorB, Table (its own shared memory), and Work, what
// one block does of it:
//   any()                     whether the block's tile holds an element
//   tiles()                   k-tiles to multiply
//   loader_a(), loader_b()    load(slice): begin to copy the next k-tile
//   holds(row, column)        whether an element of the tile is one of C
//   store(row, column, v)     writes those of four neighbours of a row that are, at least the first
//   plain(row, column)        an element by a plain sum, NaN as soon as it is
// An infinity has no small part, so it comes out of kTf32x3 as NaN: where a result is NaN, the
// plain sum decides. (It ends as soon as it is NaN too, so that a network of NaNs costs little.)
template <class Work>
__device__ void mend(const Work& work, int row, int column, float* v) {
#pragma unroll 1
  for (int i = 0; i < 4; ++i)
    if (v[i] != v[i] && work.holds(row, column + i)) v[i] = work.plain(row, column + i);
}

template <class P>
__device__ void run_block(const P& p) {
  auto& s = shared<GemmShared<P>>();
  typename P::Work work(p, s.table);
  if (!work.any()) return;
  Accumulators<typename P::Element, typename P::Tile, P::kMath, P::kMajorA, P::kMajorB> sums;
  auto a = work.loader_a();
  auto b = work.loader_b();
  multiply_tiles(s.stages, work.tiles(), a, b, sums);
  __syncthreads();  // c lies where the stages were
  sums.write(s.c);
  __syncthreads();
  constexpr int kChunks = P::Tile::kN / 4;
#pragma unroll 1
  for (int i = int(threadIdx.x); i < P::Tile::kM * kChunks; i += P::Tile::kThreads) {
    const int row = i / kChunks, column = i % kChunks * 4;
    if (!work.holds(row, column)) continue;
    if constexpr (P::kMath == Math::kTf32x3) mend(work, row, column, &s.c[row][column]);
    work.store(row, column, load_pack<4>(&s.c[row][column]));
  }
}

template <class P>
__global__ void __launch_bounds__(P::Tile::kThreads, P::Tile::kBlocks)
    mma_kernel(const __grid_constant__ P p) {
  run_block(p);
}
template <class P>
__global__ void __launch_bounds__(P::Tile::kThreads, P::Tile::kBlocks)
    fma_kernel(const __grid_constant__ P p) {
  run_block(p);
}

template <class P>
void launch_gemm(const Exec& exec, dim3 grid, const P& p) {
  constexpr auto kKernel = [] {
    if constexpr (P::kMath == Math::kFma)
      return &fma_kernel<P>;
    else
      return &mma_kernel<P>;
  }();
  static_assert(sizeof(GemmShared<P>) <= kMostShared);
  launch(exec, kKernel, grid, dim3(P::Tile::kThreads), sizeof(GemmShared<P>), p);
}

}  // namespace
}  // namespace convgrad::cuda
