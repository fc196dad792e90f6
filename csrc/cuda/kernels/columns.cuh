// Sums over the rows of x (batches, rows, c), per batch and channel, in two stages: blocks of rows,
// whose bounds follow from the shape alone, and then the blocks' results in a fixed tree.
//
// A thread has a pack of neighbouring channels, so that a block's threads read whole rows, side by
// side. It sums runs of kRun rows in T and the runs in double.
#pragma once
#include <type_traits>

#include "cuda/launch.cuh"

namespace convgrad::cuda {
namespace {

constexpr int kColumnThreads = 256;
constexpr int kRun = 8;
constexpr int64_t kColumnBlocks = kMaxBlocks / 8;  // wanted for large arrays

// How the array is spread over blocks of threads.
struct ColumnPlan {
  int64_t batches, rows, c;
  int pack;           // channels of a thread, pack_of<T>(c)
  int width, height;  // a block's threads along the packs and along the rows
  int tiles;          // of width packs, along the channels
  int blocks;         // of block_rows rows, of a batch
  int64_t block_rows;

  dim3 grid() const { return dim3(unsigned(batches * tiles * blocks)); }
  // From a thread's row to its next, in elements.
  __device__ int64_t step() const { return height * c; }
  __host__ __device__ int64_t rows_of(int64_t block) const {
    const int64_t left = rows - block * block_rows;
    return left < block_rows ? left : block_rows;
  }
};

template <class T>
int pack_of(int64_t c) {
  return c % kPack<T> == 0 ? kPack<T> : 1;
}

// With at least `run` rows for every thread of a large array; c is at least 1.
template <class T>
ColumnPlan column_plan(int64_t batches, int64_t rows, int64_t c, int run = kRun) {
  ColumnPlan p;
  p.batches = batches;
  p.rows = rows;
  p.c = c;
  p.pack = pack_of<T>(c);
  const int64_t packs = c / p.pack;
  p.tiles = int(ceil_div(packs, kColumnThreads));
  p.width = int(ceil_div(packs, p.tiles));
  p.height = kColumnThreads / p.width;
  const int64_t least = int64_t{run} * p.height;
  const int64_t wanted = kColumnBlocks / std::max<int64_t>(batches * p.tiles, 1);
  p.block_rows = least * ceil_div(rows, least * std::max<int64_t>(wanted, 1));
  p.blocks = rows == 0 ? 0 : int(ceil_div(rows, p.block_rows));
  return p;
}

// fn(pack, packed), integral_constants: a thread's channels of rows of c, and whether they are read
// by one access, which takes aligned arrays.
template <class T, class Fn>
void with_pack(int64_t c, bool aligned, const Fn& fn) {
  using Many = std::integral_constant<int, kPack<T>>;
  if (pack_of<T>(c) == 1) return fn(std::integral_constant<int, 1>{}, std::true_type{});
  aligned ? fn(Many{}, std::true_type{}) : fn(Many{}, std::false_type{});
}

// A thread's place: its channels, and every height-th row from `row` to `end`, of its batch.
struct ColumnPlace {
  int64_t batch, channel, row, end;
  int block, tile, line;
  bool inside;

  __device__ explicit ColumnPlace(const ColumnPlan& p) {
    const int number = int(blockIdx.x), lane = int(threadIdx.x) % p.width;
    block = number % p.blocks;
    tile = number / p.blocks % p.tiles;
    batch = number / p.blocks / p.tiles;
    line = int(threadIdx.x) / p.width;
    channel = (int64_t(tile) * p.width + lane) * p.pack;
    inside = line < p.height && channel < p.c;
    row = block * p.block_rows + line;
    end = block * p.block_rows + p.rows_of(block);
  }
  // Of the thread's first channel in a row of its batch.
  __device__ int64_t at(const ColumnPlan& p, int64_t row) const {
    return (batch * p.rows + row) * p.c + channel;
  }

  // body(count, row) for the thread's rows, kMany or 1 at a time: row, row + height, ...
  template <int kMany, class Body>
  __device__ void for_rows(const ColumnPlan& p, const Body& body) const {
    if (!inside) return;
    const int64_t many = int64_t{kMany} * p.height;
    int64_t r = row;
    for (; r + many - p.height < end; r += many) body(std::integral_constant<int, kMany>{}, r);
    for (; r < end; r += p.height) body(std::integral_constant<int, 1>{}, r);
  }
};

template <int kV, bool kPacked, class T>
__device__ Pack<T, kV> load_columns(const T* p) {
  if constexpr (kPacked) {
    return load_pack<kV>(p);
  } else {
    Pack<T, kV> pack;
    for (int v = 0; v < kV; ++v) pack[v] = p[v];
    return pack;
  }
}
template <int kV, bool kPacked, class T>
__device__ void store_columns(T* p, const Pack<T, kV>& pack) {
  if constexpr (kPacked) {
    store_pack(p, pack);
  } else {
    for (int v = 0; v < kV; ++v) p[v] = pack[v];
  }
}

// ---- first stage ----

template <int kSums, int kV>
struct ColumnScratch {
  double value[kSums][kV][kColumnThreads];
};

// Adds the sums of a block's lines up into those of line 0.
template <int kSums, int kV>
__device__ void add_lines(const ColumnPlan& plan, int line, ColumnScratch<kSums, kV>& scratch,
                          double (&total)[kSums][kV]) {
  const int self = int(threadIdx.x);
  for (int n = 0; n < kSums; ++n)
    for (int v = 0; v < kV; ++v) scratch.value[n][v][self] = total[n][v];
  for (int lines = plan.height; lines > 1;) {
    const int half = (lines + 1) / 2;
    __syncthreads();
    if (line < lines - half)
      for (int n = 0; n < kSums; ++n)
        for (int v = 0; v < kV; ++v)
          scratch.value[n][v][self] += scratch.value[n][v][self + half * plan.width];
    lines = half;
  }
  for (int n = 0; n < kSums; ++n)
    for (int v = 0; v < kV; ++v) total[n][v] = scratch.value[n][v][self];
}

// parts (batches, c, blocks, kSums): the sums of each block of rows. Terms:
//   columns<kV, kPacked>(place)       what the sums need to know of the thread's channels
//   add<kPacked, kRows>(columns, place, row, total)
//                                     adds rows row, row + height, ... to total[kSums][kV]
//   finish(columns, rows, sum)        the block's result for a channel from its kSums sums
template <class Terms, int kV, bool kPacked>
__global__ void __launch_bounds__(kColumnThreads, 2)
    column_sums(ColumnPlan plan, Terms terms, double* parts) {
  constexpr int kSums = Terms::kSums;
  const ColumnPlace place(plan);
  double total[kSums][kV] = {};
  const auto columns = terms.template columns<kV, kPacked>(plan, place);
  place.for_rows<kRun>(plan, [&](auto rows, int64_t row) {
    terms.template add<kPacked, rows.value>(plan, place, columns, row, total);
  });
  add_lines(plan, place.line, shared<ColumnScratch<kSums, kV>>(), total);
  if (!place.inside || place.line != 0) return;
  for (int v = 0; v < kV; ++v) {
    double sums[kSums];
    for (int n = 0; n < kSums; ++n) sums[n] = total[n][v];
    terms.finish(columns, v, double(plan.rows_of(place.block)), sums);
    const int64_t channel = place.batch * plan.c + place.channel + v;
    for (int n = 0; n < kSums; ++n)
      parts[(channel * plan.blocks + place.block) * kSums + n] = sums[n];
  }
}

inline int64_t column_parts(const ColumnPlan& plan, int sums) {
  return plan.batches * plan.c * plan.blocks * sums;
}

template <class T, class Terms>
void sum_columns(const Exec& exec, const ColumnPlan& plan, bool packed, const Terms& terms,
                 double* parts) {
  with_pack<T>(plan.c, packed, [&](auto pack, auto is_packed) {
    launch(exec, column_sums<Terms, pack.value, is_packed.value>, plan.grid(), dim3(kColumnThreads),
           sizeof(ColumnScratch<Terms::kSums, pack.value>), plan, terms, parts);
  });
}

// ---- second stage: a warp or a block per result ----

template <int kThreads>
struct TotalScratch {
  double sums[kThreads / kWarp];
};

// fn(threads), an integral_constant: the block for results of `entries` parts each.
template <class Fn>
void with_total_threads(int64_t entries, const Fn& fn) {
  if (entries <= 4 * kWarp) return fn(std::integral_constant<int, kWarp>{});
  fn(std::integral_constant<int, 256>{});
}

// dw (c) and db (c), each where not null, of parts (batches, c, blocks, 2): sums of dy and of
// dy times what a weight multiplies; the latter's times scale(batch, channel). A block per channel.
template <int kThreads, class A, class Scale>
__global__ void __launch_bounds__(kThreads)
    parameter_gradients(ColumnPlan plan, const double* parts, Scale scale, A* dw, A* db) {
  auto& scratch = shared<TotalScratch<kThreads>>();
  const int64_t channel = blockIdx.x;
  double bias = 0, weight = 0;
  for (int64_t i = threadIdx.x; i < plan.batches * plan.blocks; i += kThreads) {
    const int64_t batch = i / plan.blocks, block = i % plan.blocks;
    const double* part = parts + ((batch * plan.c + channel) * plan.blocks + block) * 2;
    bias += part[0];
    weight += part[1] * scale(batch, channel);
  }
  bias = block_reduce<kThreads>(bias, scratch.sums, Plus<double>{});
  weight = block_reduce<kThreads>(weight, scratch.sums, Plus<double>{});
  if (threadIdx.x != 0) return;
  if (dw) dw[channel] = A(weight);
  if (db) db[channel] = A(bias);
}

template <class A, class Scale>
void sum_parameter_gradients(const Exec& exec, const ColumnPlan& plan, const double* parts,
                             const Scale& scale, A* dw, A* db) {
  if (!dw && !db) return;
  with_total_threads(plan.batches * plan.blocks, [&](auto threads) {
    launch(exec, parameter_gradients<threads.value, A, Scale>, dim3(unsigned(plan.c)),
           dim3(threads.value), sizeof(TotalScratch<threads.value>), plan, parts, scale, dw, db);
  });
}

}  // namespace
}  // namespace convgrad::cuda
