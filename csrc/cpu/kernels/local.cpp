// Locally connected layers: convolution with weights of its own at every output position.
// x (n, in, c), w (k, out, taps, c), b (k, out), y (n, out, k).
//
// One position is a matrix product: its windows, copied to rows (n, taps * c), zeros outside the
// input, times its weights (taps * c, k).
#include "column_sum.h"
#include "gemm.h"

namespace convgrad::cpu {
namespace {

constexpr int64_t kImages = 64;  // of the forward pass whose windows are gathered at a time

inline int64_t window_size(const ConvShape& s) { return s.taps() * s.in_c; }

// row(at, window, lo, hi) for each row of taps along the width of output position o: taps
// [lo, hi) lie in the input from element `at` on, a multiple of dil apart; `window`: where they are
// in the window.
template <class Row>
void for_tap_rows(const ConvShape& s, int64_t o, const Row& row) {
  const int64_t out[3] = {o / (s.out[1] * s.out[2]), o / s.out[2] % s.out[1], o % s.out[2]};
  int64_t first[3];
  for (int i = 0; i < 3; ++i) first[i] = out[i] * s.stride[i] - s.pad[i];
  const int64_t dil = s.dil[2], room = s.in[2] - first[2];
  const int64_t lo = min_of(s.ker[2], first[2] >= 0 ? 0 : ceil_div(-first[2], dil));
  const int64_t hi = max_of(lo, room <= 0 ? 0 : min_of(s.ker[2], ceil_div(room, dil)));
  for (int64_t kd = 0; kd < s.ker[0]; ++kd)
    for (int64_t kh = 0; kh < s.ker[1]; ++kh) {
      const int64_t d = first[0] + kd * s.dil[0], h = first[1] + kh * s.dil[1];
      const bool inside = d >= 0 && d < s.in[0] && h >= 0 && h < s.in[1];
      row(((d * s.in[1] + h) * s.in[2] + first[2] + lo * dil) * s.in_c,
          (kd * s.ker[1] + kh) * s.ker[2] * s.in_c, inside ? lo : 0, inside ? hi : 0);
    }
}

template <class T>
void gather_windows(const ConvShape& s, int64_t o, int64_t images, const T* x, T* windows) {
  const int64_t image = s.in_pixels() * s.in_c, c = s.in_c, size = window_size(s);
  for_tap_rows(s, o, [&](int64_t at, int64_t window, int64_t lo, int64_t hi) {
    for (int64_t n = 0; n < images; ++n) {
      T* to = windows + n * size + window;
      for (int64_t i = 0; i < lo * c; ++i) to[i] = 0;
      for (int64_t t = lo; t < hi; ++t)
        for (int64_t i = 0; i < c; ++i)
          to[t * c + i] = x[n * image + at + (t - lo) * s.dil[2] * c + i];
      for (int64_t i = hi * c; i < s.ker[2] * c; ++i) to[i] = 0;
    }
  });
}

template <class T>
void scatter_windows(const ConvShape& s, int64_t o, int64_t images, const T* windows, T* dx) {
  const int64_t image = s.in_pixels() * s.in_c, c = s.in_c, size = window_size(s);
  for_tap_rows(s, o, [&](int64_t at, int64_t window, int64_t lo, int64_t hi) {
    for (int64_t n = 0; n < images; ++n)
      for (int64_t t = lo; t < hi; ++t)
        for (int64_t i = 0; i < c; ++i)
          dx[n * image + at + (t - lo) * s.dil[2] * c + i] +=
              windows[n * size + window + t * c + i];
  });
}

// c (m, n; pitch) = bias + a b, on this thread.
template <class T>
void serial_gemm(int64_t m, int64_t n, int64_t k, MatrixView<T> a, MatrixView<T> b, const T* bias,
                 T* c, int64_t pitch, T* scratch) {
  const GemmBlock block = gemm_block<T>(m, n, k, 1);
  for (int64_t i = 0; i < m; i += block.rows)
    for (int64_t j = 0; j < n; j += block.cols)
      gemm_item(block, k, a.at(i, 0), b.at(0, j),
                GemmTarget<T>{c, pitch, m, n, {bias}}.at(i, j).at_most(block.rows, block.cols),
                scratch);
}

inline int64_t line(int64_t elements) { return ceil_div(elements, 16) * 16; }

// ---- forward: one item per position ----

template <class T>
int64_t forward_scratch(const ConvShape& s) {
  const int64_t images = min_of(s.n, kImages);
  return line(images * window_size(s)) + line(s.out_c) +
         gemm_block<T>(images, s.out_c, window_size(s), 1).scratch;
}
template <class T>
int64_t local_forward_workspace(const ConvShape& s, int threads) {
  return threads * forward_scratch<T>(s) * static_cast<int64_t>(sizeof(T));
}

template <class T>
void local_forward(const Exec& exec, const ConvShape& s, const T* x, const T* w, const T* b, T* y) {
  const int64_t size = window_size(s), outs = s.out_pixels();
  const int64_t scratch_size = forward_scratch<T>(s);
  parallel_for(exec, outs, s.macs(), [&](int64_t o, int thread) {
    T* windows = static_cast<T*>(exec.workspace) + thread * scratch_size;
    T* bias = windows + line(min_of(s.n, kImages) * size);
    for (int64_t k = 0; b && k < s.out_c; ++k) bias[k] = b[k * outs + o];
    const MatrixView<T> weights = {w + o * size, 1, outs * size};
    for (int64_t n = 0; n < s.n; n += kImages) {
      const int64_t images = min_of(kImages, s.n - n);
      gather_windows(s, o, images, x + n * s.in_pixels() * s.in_c, windows);
      serial_gemm<T>(images, s.out_c, size, {windows, size, 1}, weights, b ? bias : nullptr,
                     y + (n * outs + o) * s.out_c, outs * s.out_c, bias + line(s.out_c));
    }
  });
}

// ---- backward_input: one item per few images, positions in order ----

inline int64_t images_per_item(const ConvShape& s) {
  return max_of(1, min_of(32, ceil_div(s.n, 8)));
}
template <class T>
int64_t backward_input_scratch(const ConvShape& s) {
  const int64_t images = images_per_item(s);
  return line(images * window_size(s)) + gemm_block<T>(images, window_size(s), s.out_c, 1).scratch;
}
template <class T>
int64_t local_backward_input_workspace(const ConvShape& s, int threads) {
  return threads * backward_input_scratch<T>(s) * static_cast<int64_t>(sizeof(T));
}

template <class T>
void local_backward_input(const Exec& exec, const ConvShape& s, const T* dy, const T* w, T* dx) {
  const int64_t size = window_size(s), outs = s.out_pixels(), image = s.in_pixels() * s.in_c;
  const int64_t per_item = images_per_item(s), scratch_size = backward_input_scratch<T>(s);
  parallel_for(exec, ceil_div(s.n, per_item), s.macs(), [&](int64_t item, int thread) {
    T* windows = static_cast<T*>(exec.workspace) + thread * scratch_size;
    const int64_t n = item * per_item, images = min_of(per_item, s.n - n);
    for (int64_t i = n * image; i < (n + images) * image; ++i) dx[i] = 0;
    for (int64_t o = 0; o < outs; ++o) {
      serial_gemm<T>(images, size, s.out_c, {dy + (n * outs + o) * s.out_c, outs * s.out_c, 1},
                     {w + o * size, outs * size, 1}, nullptr, windows, size,
                     windows + line(per_item * size));
      scatter_windows(s, o, images, windows, dx + n * image);
    }
  });
}

// ---- backward_weight: one item per position ----

template <class T>
int64_t backward_weight_scratch(const ConvShape& s) {
  return line(s.n * window_size(s)) + line(s.out_c) +
         gemm_block<T>(s.out_c, window_size(s), s.n, 1).scratch;
}
template <class T>
int64_t local_backward_weight_workspace(const ConvShape& s, int threads) {
  return threads * backward_weight_scratch<T>(s) * static_cast<int64_t>(sizeof(T));
}

template <class T>
void local_backward_weight(const Exec& exec, const ConvShape& s, const T* dy, const T* x, T* dw,
                           T* db) {
  const int64_t size = window_size(s), outs = s.out_pixels();
  const int64_t scratch_size = backward_weight_scratch<T>(s);
  parallel_for(exec, outs, s.macs(), [&](int64_t o, int thread) {
    T* windows = static_cast<T*>(exec.workspace) + thread * scratch_size;
    T* sums = windows + line(s.n * size);
    const T* gradient = dy + o * s.out_c;
    gather_windows(s, o, s.n, x, windows);
    serial_gemm<T>(s.out_c, size, s.n, {gradient, 1, outs * s.out_c}, {windows, size, 1}, nullptr,
                   dw + o * size, outs * size, sums + line(s.out_c));
    if (!db) return;
    sum_rows<T>(s.n, s.out_c, outs * s.out_c, nullptr, gradient, sums);
    for (int64_t k = 0; k < s.out_c; ++k) db[k * outs + o] = sums[k];
  });
}

template <class T>
void add(Ops<T>& table) {
  table.local_forward_workspace = local_forward_workspace<T>;
  table.local_forward = local_forward<T>;
  table.local_backward_input_workspace = local_backward_input_workspace<T>;
  table.local_backward_input = local_backward_input<T>;
  table.local_backward_weight_workspace = local_backward_weight_workspace<T>;
  table.local_backward_weight = local_backward_weight<T>;
}

}  // namespace

namespace CONVGRAD_ISA {
void add_local(Ops<float>& table) { add(table); }
void add_local(Ops<double>& table) { add(table); }
}  // namespace CONVGRAD_ISA
}  // namespace convgrad::cpu
