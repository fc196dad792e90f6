// Convolution: backward_weight. dy (n, out, k), x (n, in, c) -> dw (k, taps, c/g), db (k).
//
// The sum over n and output pixels is cut into chunks by the shape alone; each chunk writes its own
// dw into the workspace, and a second kernel adds the chunks in order.
#include "cuda/kernels/column_sum.cuh"

namespace convgrad::cuda {
namespace {

constexpr int64_t kThreadsWanted = 132 * 2048;            // enough to fill a large card
constexpr int64_t kLeastPixels = 64;                      // per chunk
constexpr int64_t kMostPartialBytes = int64_t{64} << 20;  // of all chunks

// ---- direct: one thread per chunk and weight ----

struct ChunkPlan {
  int64_t chunks, pixels_per_chunk;  // pixels of all images, in order
};
template <class T>
ChunkPlan plan_direct(const ConvShape& s) {
  const int64_t pixels = s.n * s.out_pixels(), size = std::max<int64_t>(1, s.w_size());
  int64_t chunks = std::min(ceil_div(kThreadsWanted, size), ceil_div(pixels, kLeastPixels));
  chunks = std::min<int64_t>(chunks, kMostPartialBytes / (size * int64_t(sizeof(Acc<T>))));
  chunks = std::max<int64_t>(1, chunks);
  return {chunks, ceil_div(pixels, chunks)};
}

// The sum of dy[p][k] * x[p's window at t][c] over pixels [begin, end), in blocks of terms.
template <class T>
__device__ Acc<T> weight_sum(const ConvShape& s, const int64_t t[3], int64_t k, int64_t c,
                             int64_t begin, int64_t end, const T* dy, const T* x) {
  Acc<T> total = 0;
  for (int64_t p0 = begin; p0 < end; p0 += kTermBlock) {
    const int64_t stop = p0 + kTermBlock < end ? p0 + kTermBlock : end;
    Acc<T> sum = 0;
    for (int64_t p = p0; p < stop; ++p) {
      const int64_t n = p / s.out_pixels(), o = p % s.out_pixels();
      const int64_t at[3] = {o / (s.out[1] * s.out[2]), o / s.out[2] % s.out[1], o % s.out[2]};
      int64_t pixel = n;
      bool inside = true;
      for (int i = 0; i < 3; ++i) {
        const int64_t in = at[i] * s.stride[i] - s.pad[i] + t[i] * s.dil[i];
        inside = inside && in >= 0 && in < s.in[i];
        pixel = pixel * s.in[i] + in;
      }
      if (inside) sum += Acc<T>(dy[p * s.out_c + k]) * Acc<T>(x[pixel * s.in_c + c]);
    }
    total += sum;
  }
  return total;
}

template <class T>
void backward_weight_direct(const Exec& exec, const ConvShape& s, const T* dy, const T* x,
                            Acc<T>* partial, T* dw) {
  const ChunkPlan plan = plan_direct<T>(s);
  const int64_t size = s.w_size(), pixels = s.n * s.out_pixels();
  for_each(exec, plan.chunks * size, [=] __device__(int64_t i) {
    const int64_t chunk = i / size, c = i % s.group_in_c();
    const int64_t tap = i % size / s.group_in_c() % s.taps();
    const int64_t k = i % size / (s.group_in_c() * s.taps());
    const int64_t t[3] = {tap / (s.ker[1] * s.ker[2]), tap / s.ker[2] % s.ker[1], tap % s.ker[2]};
    const int64_t begin = chunk * plan.pixels_per_chunk, end = begin + plan.pixels_per_chunk;
    partial[i] = weight_sum<T>(s, t, k, k / s.group_out_c() * s.group_in_c() + c, begin,
                               end < pixels ? end : pixels, dy, x);
  });
  sum_chunks<T>(exec, plan.chunks, size, size, partial, dw);
}

// ---- the ops ----

ConvAlgorithm conv_backward_weight_algorithm(const ConvShape&) { return ConvAlgorithm::kGeneric; }

template <class T>
int64_t conv_backward_weight_workspace(const ConvShape& s, int threads) {
  const int64_t bias = column_sum_workspace<T>(s.n * s.out_pixels(), s.out_c, threads);
  return std::max(bias, plan_direct<T>(s).chunks * s.w_size() * int64_t(sizeof(Acc<T>)));
}

// The two sums use the workspace one after the other.
template <class T>
void conv_backward_weight(const Exec& exec, const ConvShape& s, const T* dy, const T* x, T* dw,
                          T* db) {
  Acc<T>* partial = static_cast<Acc<T>*>(exec.workspace);
  backward_weight_direct<T>(exec, s, dy, x, partial, dw);
  if (db) column_sum_in<T>(exec, s.n * s.out_pixels(), s.out_c, dy, partial, db);
}

template <class T>
void add(Ops<T>& table) {
  table.conv_backward_weight_algorithm = conv_backward_weight_algorithm;
  table.conv_backward_weight_workspace = conv_backward_weight_workspace<T>;
  table.conv_backward_weight = conv_backward_weight<T>;
}

}  // namespace

void add_conv_backward_weight(Ops<float>& table) { add(table); }
void add_conv_backward_weight(Ops<double>& table) { add(table); }

}  // namespace convgrad::cuda
