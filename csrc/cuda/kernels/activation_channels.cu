// Activations that know channels: prelu and maxout. Channels last.
#include "cuda/packs.cuh"

namespace convgrad::cuda {
namespace {

constexpr int kThreads = 256;

// ---- prelu ----

template <class T, int W>
__global__ void __launch_bounds__(kThreads)
    prelu_forward_kernel(int64_t packs, Divider by_packs, bool shared_slope, const T* x, const T* a,
                         T* y) {
  for (int64_t i = thread_index(); i < packs; i += thread_count()) {
    Acc<T> v[W];
    load_values<W>(x + i * W, v);
    int64_t row = i;
    const int64_t c = shared_slope ? 0 : by_packs.split(row) * W;
#pragma unroll
    for (int j = 0; j < W; ++j) {
      const Acc<T> slope = Acc<T>(a[shared_slope ? 0 : c + j]);
      v[j] = v[j] > Acc<T>(0) ? v[j] : slope * v[j];
    }
    store_values<W>(y + i * W, v);
  }
}

template <class T>
void prelu_forward(const Exec& exec, int64_t rows, int64_t c, const T* x, const T* a, T* y) {
  if (rows * c == 0) return;
  with_width<T>(are_packs<T>(c == 1 ? rows : c, x, y), [&](auto width) {
    constexpr int W = decltype(width)::value;
    const int64_t packs = rows * c / W;
    launch(exec, prelu_forward_kernel<T, W>, grid_for(packs, kThreads), dim3(kThreads), 0, packs,
           Divider(std::max<int64_t>(c / W, 1)), c == 1, x, a, y);
  });
}

// The backward pass is cut into so many blocks of rows, each of which leaves a sum per channel.
constexpr int64_t kRowBlocks = 512;
struct RowBlocks {
  int64_t rows, count;  // of a block; how many there are

  explicit RowBlocks(int64_t all) {
    rows = std::max<int64_t>(ceil_div(all, kRowBlocks), 32);
    count = ceil_div(all, rows);
  }
};

template <class T>
int64_t prelu_backward_workspace(int64_t rows, int64_t c, int) {
  return RowBlocks(rows).count * c * int64_t(sizeof(Acc<T>));
}

template <class T, int W>
struct ColumnSums {
  Acc<T> sum[kThreads][W];
};
// dx of a block of rows (y) and `lanes` packs of channels (x), and partial (row blocks, c) = their
// sums of dy min(0, x).
template <class T, int W>
__global__ void __launch_bounds__(kThreads)
    prelu_backward_kernel(int64_t rows, int64_t c, int64_t rows_per_block, int lanes,
                          const T* __restrict__ x, const T* __restrict__ a,
                          const T* __restrict__ dy, T* __restrict__ dx,
                          Acc<T>* __restrict__ partial) {
  auto& sums = shared<ColumnSums<T, W>>().sum;
  const int me = int(threadIdx.x);
  const int64_t channel = (int64_t(blockIdx.x) * lanes + me % lanes) * W;
  const int64_t begin = blockIdx.y * rows_per_block;
  const int64_t end = begin + rows_per_block < rows ? begin + rows_per_block : rows;
  LongSum<Acc<T>, W> sum;
  for (int64_t row = begin + me / lanes; channel < c && row < end; row += kThreads / lanes) {
    Acc<T> v[W], g[W], term[W];
    load_values<W>(x + row * c + channel, v);
    load_values<W>(dy + row * c + channel, g);
#pragma unroll
    for (int j = 0; j < W; ++j) {
      term[j] = v[j] > Acc<T>(0) ? Acc<T>(0) : g[j] * v[j];
      g[j] = v[j] > Acc<T>(0) ? g[j] : Acc<T>(a[channel + j]) * g[j];
    }
    store_values<W>(dx + row * c + channel, g);
    sum.add(term);
  }
  sum.fold();
#pragma unroll
  for (int j = 0; j < W; ++j) sums[me][j] = sum.total[j];
  for (int step = kThreads / 2; step >= lanes; step /= 2) {
    __syncthreads();
    if (me >= step) continue;
#pragma unroll
    for (int j = 0; j < W; ++j) sums[me][j] += sums[me + step][j];
  }
  if (me >= lanes || channel >= c) return;
#pragma unroll
  for (int j = 0; j < W; ++j) partial[blockIdx.y * c + channel + j] = sums[me][j];
}

// da (c) = the sums of partial (blocks, c), a warp per channel, in double.
template <class T>
__global__ void __launch_bounds__(kThreads)
    add_blocks(int64_t blocks, int64_t c, const Acc<T>* __restrict__ partial, T* __restrict__ da) {
  const int lane = int(threadIdx.x) % kWarp;
  const int64_t warps = thread_count() / kWarp;
  for (int64_t channel = thread_index() / kWarp; channel < c; channel += warps) {
    double sum = 0;
    for (int64_t block = lane; block < blocks; block += kWarp)
      sum += double(partial[block * c + channel]);
    sum = warp_sum(sum);
    if (lane == 0) da[channel] = T(sum);
  }
}

template <class T>
void prelu_backward(const Exec& exec, int64_t rows, int64_t c, const T* x, const T* a, const T* dy,
                    T* dx, T* da) {
  const RowBlocks blocks(rows);
  auto* partial = static_cast<Acc<T>*>(exec.workspace);
  with_width<T>(are_packs<T>(c, x, dy, dx), [&](auto width) {
    constexpr int W = decltype(width)::value;
    const int64_t packs = c / W;
    const int lanes = power_of_two(packs, kWarp);
    launch(exec, prelu_backward_kernel<T, W>,
           dim3(unsigned(ceil_div(packs, lanes)), unsigned(blocks.count)), dim3(kThreads),
           sizeof(ColumnSums<T, W>), rows, c, blocks.rows, lanes, x, a, dy, dx, partial);
  });
  launch(exec, add_blocks<T>, grid_for(c * kWarp, kThreads), dim3(kThreads), 0, blocks.count, c,
         partial, da);
}

// ---- maxout ----

// Where the largest of x[0 .. k) lies: the first NaN, or else the first of the largest. K = k where
// it is known to the compiler, else 0.
template <class T, int K>
__device__ int64_t first_largest(const T* x, int64_t k, Acc<T>* largest) {
  Acc<T> best = Acc<T>(x[0]);
  int64_t at = 0;
  for (int64_t j = 1; j < (K ? K : k); ++j) {
    const Acc<T> v = Acc<T>(x[j]);
    const bool more = !(v <= best) && best == best;
    best = more ? v : best;
    at = more ? j : at;
  }
  *largest = best;
  return at;
}

template <class T, int K>
void run_maxout_forward(const Exec& exec, int64_t n, int64_t k, const T* x, T* y) {
  for_each(exec, n, [=] __device__(int64_t i) {
    Acc<T> largest;
    first_largest<T, K>(x + i * k, k, &largest);
    y[i] = T(largest);
  });
}
template <class T, int K>
void run_maxout_backward(const Exec& exec, int64_t n, int64_t k, const T* x, const T* dy, T* dx) {
  for_each(exec, n, [=] __device__(int64_t i) {
    Acc<T> largest;
    const int64_t at = first_largest<T, K>(x + i * k, k, &largest);
    for (int64_t j = 0; j < (K ? K : k); ++j) dx[i * k + j] = j == at ? dy[i] : T(0);
  });
}

template <class T>
void maxout_forward(const Exec& exec, int64_t n, int64_t k, const T* x, T* y) {
  if (k == 2) return run_maxout_forward<T, 2>(exec, n, k, x, y);
  run_maxout_forward<T, 0>(exec, n, k, x, y);
}
template <class T>
void maxout_backward(const Exec& exec, int64_t n, int64_t k, const T* x, const T* dy, T* dx) {
  if (k == 2) return run_maxout_backward<T, 2>(exec, n, k, x, dy, dx);
  run_maxout_backward<T, 0>(exec, n, k, x, dy, dx);
}

template <class T>
void add(Ops<T>& table) {
  table.prelu_forward = prelu_forward<T>;
  table.prelu_backward_workspace = prelu_backward_workspace<T>;
  table.prelu_backward = prelu_backward<T>;
  table.maxout_forward = maxout_forward<T>;
  table.maxout_backward = maxout_backward<T>;
}

}  // namespace

CONVGRAD_STEM(activation_channels)

}  // namespace convgrad::cuda
