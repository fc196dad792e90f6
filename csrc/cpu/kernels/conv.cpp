// Convolution: forward and backward_input. x (n, in, c), w (k, taps, c/g), y (n, out, k).
#include "parallel.h"
#include "vec.h"

namespace convgrad::cpu {
namespace {

// ---- generic: any shape, any type; one output pixel at a time ----

// Bounds [lo, hi) of the taps of one axis whose input coordinate o * stride - pad + tap * dil lies
// inside [0, in).
struct TapRange {
  int64_t lo, hi;
};
inline TapRange taps_inside(const ConvShape& s, int axis, int64_t o) {
  const int64_t first = o * s.stride[axis] - s.pad[axis];
  const int64_t lo = first >= 0 ? 0 : ceil_div(-first, s.dil[axis]);
  const int64_t hi =
      first >= s.in[axis] ? 0 : min_of(s.ker[axis], ceil_div(s.in[axis] - first, s.dil[axis]));
  return {lo, max_of(lo, hi)};
}

template <class T>
T dot(const T* a, const T* b, int64_t n) {
  Vec<T> acc = {};
  int64_t i = 0;
  for (; i + kLanes<T> <= n; i += kLanes<T>) acc += load(a + i) * load(b + i);
  T sum = 0;
  for (int lane = 0; lane < kLanes<T>; ++lane) sum += acc[lane];
  for (; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

template <class T>
void forward_pixel(const ConvShape& s, int64_t n, const int64_t o[3], const T* x, const T* w,
                   const T* b, T* y) {
  const int64_t gc = s.group_in_c(), gk = s.group_out_c();
  const TapRange d = taps_inside(s, 0, o[0]), h = taps_inside(s, 1, o[1]),
                 v = taps_inside(s, 2, o[2]);
  for (int64_t k = 0; k < s.out_c; ++k) {
    const int64_t c0 = k / gk * gc;
    T sum = 0;
    for (int64_t kd = d.lo; kd < d.hi; ++kd)
      for (int64_t kh = h.lo; kh < h.hi; ++kh)
        for (int64_t kw = v.lo; kw < v.hi; ++kw) {
          const int64_t id = o[0] * s.stride[0] - s.pad[0] + kd * s.dil[0];
          const int64_t ih = o[1] * s.stride[1] - s.pad[1] + kh * s.dil[1];
          const int64_t iw = o[2] * s.stride[2] - s.pad[2] + kw * s.dil[2];
          const int64_t pixel = ((n * s.in[0] + id) * s.in[1] + ih) * s.in[2] + iw;
          const int64_t tap = (kd * s.ker[1] + kh) * s.ker[2] + kw;
          sum += dot(x + pixel * s.in_c + c0, w + (k * s.taps() + tap) * gc, gc);
        }
    y[k] = b ? sum + b[k] : sum;
  }
}

int64_t conv_forward_workspace(const ConvShape&, int) { return 0; }

template <class T>
void conv_forward(const Exec& exec, const ConvShape& s, const T* x, const T* w, const T* b, T* y) {
  parallel_for(exec, s.n * s.out[0] * s.out[1], s.macs(), [&](int64_t row, int) {
    const int64_t n = row / (s.out[0] * s.out[1]);
    int64_t o[3] = {row / s.out[1] % s.out[0], row % s.out[1], 0};
    for (; o[2] < s.out[2]; ++o[2])
      forward_pixel(s, n, o, x, w, b, y + (row * s.out[2] + o[2]) * s.out_c);
  });
}

int64_t conv_backward_input_workspace(const ConvShape&, int) { return 0; }

// Gathers, for one input pixel, every output pixel whose window covers it.
template <class T>
void backward_input_pixel(const ConvShape& s, int64_t n, const int64_t i[3], const T* dy,
                          const T* w, const T* b, T* dx) {
  const int64_t gc = s.group_in_c(), gk = s.group_out_c();
  for (int64_t c = 0; c < s.in_c; ++c) dx[c] = b ? b[c] : T(0);
  for (int64_t tap = 0; tap < s.taps(); ++tap) {
    const int64_t k3[3] = {tap / (s.ker[1] * s.ker[2]), tap / s.ker[2] % s.ker[1],
                           tap % s.ker[2]};
    int64_t o[3];
    bool inside = true;
    for (int axis = 0; axis < 3; ++axis) {
      const int64_t at = i[axis] + s.pad[axis] - k3[axis] * s.dil[axis];
      o[axis] = at / s.stride[axis];
      inside = inside && at >= 0 && at % s.stride[axis] == 0 && o[axis] < s.out[axis];
    }
    if (!inside) continue;
    const T* g = dy + (((n * s.out[0] + o[0]) * s.out[1] + o[1]) * s.out[2] + o[2]) * s.out_c;
    for (int64_t k = 0; k < s.out_c; ++k) {
      const T* row = w + (k * s.taps() + tap) * gc;
      T* out = dx + k / gk * gc;
      for (int64_t c = 0; c < gc; ++c) out[c] += g[k] * row[c];
    }
  }
}

template <class T>
void conv_backward_input(const Exec& exec, const ConvShape& s, const T* dy, const T* w, const T* b,
                         T* dx) {
  parallel_for(exec, s.n * s.in[0] * s.in[1], s.macs(), [&](int64_t row, int) {
    const int64_t n = row / (s.in[0] * s.in[1]);
    int64_t i[3] = {row / s.in[1] % s.in[0], row % s.in[1], 0};
    for (; i[2] < s.in[2]; ++i[2])
      backward_input_pixel(s, n, i, dy, w, b, dx + (row * s.in[2] + i[2]) * s.in_c);
  });
}

template <class T>
void add(Ops<T>& table) {
  table.conv_forward_workspace = conv_forward_workspace;
  table.conv_forward = conv_forward<T>;
  table.conv_backward_input_workspace = conv_backward_input_workspace;
  table.conv_backward_input = conv_backward_input<T>;
}

}  // namespace

namespace CONVGRAD_ISA {
void add_conv(Ops<float>& table) { add(table); }
void add_conv(Ops<double>& table) { add(table); }
}  // namespace CONVGRAD_ISA
}  // namespace convgrad::cpu
