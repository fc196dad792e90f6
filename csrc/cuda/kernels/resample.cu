// Resampling by one sparse matrix per axis: interpolation, reflecting and circular padding, and
// their adjoints (the transposed matrices).
#include "cuda/packs.cuh"

namespace convgrad::cuda {
namespace {

constexpr int kThreads = 256;

template <class T>
struct Maps {
  AxisMap<T> axis[3];  // d, h, w
  Divider by_out[3];

  Maps(const ResampleShape& s, const AxisMap<T>* map) {
    for (int i = 0; i < 3; ++i) {
      axis[i] = map[i];
      by_out[i] = Divider(s.out[i]);
    }
  }
};

// One thread per pack of y: the sum over the entries of its three axes, in their order.
template <class T, int W>
__global__ void __launch_bounds__(kThreads, 4)
    resample_kernel(ResampleShape s, Maps<T> map, Divider by_packs, int64_t items,
                    const T* __restrict__ x, T* __restrict__ y) {
  for (int64_t i = thread_index(); i < items; i += thread_count()) {
    int64_t n = i;
    const int64_t c = by_packs.split(n) * W;
    const int64_t ow = map.by_out[2].split(n), oh = map.by_out[1].split(n);
    const int64_t od = map.by_out[0].split(n);
    const int64_t d0 = map.axis[0].start[od], d1 = map.axis[0].start[od + 1];
    const int64_t h0 = map.axis[1].start[oh], h1 = map.axis[1].start[oh + 1];
    const int64_t w0 = map.axis[2].start[ow], w1 = map.axis[2].start[ow + 1];
    const T* image = x + n * s.in[0] * s.in[1] * s.in[2] * s.c + c;
    Acc<T> sum[W] = {};
    bool first = true;
    for (int64_t d = d0; d < d1; ++d)
      for (int64_t h = h0; h < h1; ++h) {
        const int64_t row = (map.axis[0].source[d] * s.in[1] + map.axis[1].source[h]) * s.in[2];
        const Acc<T> row_weight = map.axis[0].weight[d] * map.axis[1].weight[h];
        for (int64_t w = w0; w < w1; ++w) {
          Acc<T> v[W];
          load_values<W>(image + (row + map.axis[2].source[w]) * s.c, v);
          const Acc<T> weight = row_weight * map.axis[2].weight[w];
        // A copy keeps the sign of a zero.
#pragma unroll
          for (int j = 0; j < W; ++j) sum[j] = first ? v[j] * weight : sum[j] + v[j] * weight;
          first = false;
        }
      }
    store_values<W>(y + i * W, sum);
  }
}

template <class T>
void resample(const Exec& exec, const ResampleShape& s, const AxisMap<T>* map, const T* x, T* y) {
  const int64_t pixels = s.n * s.out[0] * s.out[1] * s.out[2];
  if (pixels * s.c == 0) return;
  with_width<T>(are_packs<T>(s.c, x, y), [&](auto width) {
    constexpr int W = decltype(width)::value;
    const int64_t items = pixels * (s.c / W);
    launch(exec, resample_kernel<T, W>, grid_for(items, kThreads), dim3(kThreads), 0, s,
           Maps<T>(s, map), Divider(s.c / W), items, x, y);
  });
}

template <class T>
void add(Ops<T>& table) {
  table.resample = resample<T>;
}

}  // namespace

CONVGRAD_STEM(resample)

}  // namespace convgrad::cuda
