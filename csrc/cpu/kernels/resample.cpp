// Resampling by one sparse matrix per axis: interpolation, reflecting and circular padding, and
// their adjoints (the transposed matrices).
#include "lanes.h"
#include "parallel.h"
#include "vec.h"

namespace convgrad::cpu {
namespace {

// One output pixel: the sum over the entries of its three axes.
template <class T>
inline void resample_pixel(const ResampleShape& s, const AxisMap<T>* map, const int64_t o[3],
                           const T* image, T* y) {
  const int64_t d0 = map[0].start[o[0]], d1 = map[0].start[o[0] + 1];
  const int64_t h0 = map[1].start[o[1]], h1 = map[1].start[o[1] + 1];
  const int64_t w0 = map[2].start[o[2]], w1 = map[2].start[o[2] + 1];
  if (d0 == d1 || h0 == h1 || w0 == w1) {
    for (int64_t c = 0; c < s.c; ++c) y[c] = 0;
    return;
  }
  const T* from0 =
      image +
      ((map[0].source[d0] * s.in[1] + map[1].source[h0]) * s.in[2] + map[2].source[w0]) * s.c;
  if (d1 - d0 == 1 && h1 - h0 == 1 && w1 - w0 == 1 && map[0].weight[d0] == 1 &&
      map[1].weight[h0] == 1 && map[2].weight[w0] == 1) {
    return for_channels<T>(s.c, true, [&](auto block, int64_t c) {
      put<T, block.value>(y + c, get<T, block.value>(from0 + c));
    });
  }
  // fn(source pixel's channels, weight, whether it is the first) for each entry
  const auto for_entries = [&](const auto& fn) {
    for (int64_t d = d0; d < d1; ++d)
      for (int64_t h = h0; h < h1; ++h) {
        const T* row = image + (map[0].source[d] * s.in[1] + map[1].source[h]) * s.in[2] * s.c;
        const T weight = map[0].weight[d] * map[1].weight[h];
        for (int64_t w = w0; w < w1; ++w)
          fn(row + map[2].source[w] * s.c, weight * map[2].weight[w],
             d == d0 && h == h0 && w == w0);
      }
  };
  for_channels<T>(s.c, true, [&](auto block, int64_t c) {
    constexpr int W = block.value;
    Lanes<T, W> sum{};
    for_entries([&](const T* from, T weight, bool first) {
      const Lanes<T, W> term = get<T, W>(from + c) * weight;
      sum = first ? term : sum + term;
    });
    put<T, W>(y + c, sum);
  });
}

template <class T>
void resample(const Exec& exec, const ResampleShape& s, const AxisMap<T>* map, const T* x, T* y) {
  const int64_t in = s.in[0] * s.in[1] * s.in[2] * s.c;
  const int64_t pixels = s.n * s.out[0] * s.out[1] * s.out[2];
  const int64_t piece = max_of(kGrain / 4 / max_of(s.c, 1), 1);
  parallel_for(exec, ceil_div(pixels, piece), pixels * s.c * 4, [&](int64_t item, int) {
    const int64_t begin = item * piece, end = min_of(begin + piece, pixels);
    const int64_t row = begin / s.out[2];
    int64_t n = row / s.out[1] / s.out[0];
    int64_t o[3] = {row / s.out[1] % s.out[0], row % s.out[1], begin % s.out[2]};
    for (int64_t pixel = begin; pixel < end; ++pixel) {
      resample_pixel(s, map, o, x + n * in, y + pixel * s.c);
      if (++o[2] < s.out[2]) continue;
      o[2] = 0;
      if (++o[1] < s.out[1]) continue;
      o[1] = 0;
      if (++o[0] < s.out[0]) continue;
      o[0] = 0;
      ++n;
    }
  });
}

template <class T>
void add(Ops<T>& table) {
  table.resample = resample<T>;
}

}  // namespace

namespace CONVGRAD_ISA {
void add_resample(Ops<float>& table) { add(table); }
void add_resample(Ops<double>& table) { add(table); }
}  // namespace CONVGRAD_ISA
}  // namespace convgrad::cpu
