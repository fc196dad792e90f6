// Convolution: backward_weight. dy (n, out, k), x (n, in, c) -> dw (k, taps, c/g), db (k).
#include "parallel.h"
#include "vec.h"

namespace convgrad::cpu {
namespace {

// ---- generic: any shape, any type; one filter (k) at a time, images in order ----

template <class T>
void backward_weight_filter(const ConvShape& s, int64_t k, const T* dy, const T* x, T* dw) {
  const int64_t gc = s.group_in_c(), c0 = k / s.group_out_c() * gc;
  for (int64_t i = 0; i < s.taps() * gc; ++i) dw[i] = 0;
  for (int64_t n = 0; n < s.n; ++n)
    for (int64_t tap = 0; tap < s.taps(); ++tap) {
      const int64_t kd = tap / (s.ker[1] * s.ker[2]), kh = tap / s.ker[2] % s.ker[1],
                    kw = tap % s.ker[2];
      T* out = dw + tap * gc;
      for (int64_t o = 0; o < s.out_pixels(); ++o) {
        const int64_t id = o / (s.out[1] * s.out[2]) * s.stride[0] - s.pad[0] + kd * s.dil[0];
        const int64_t ih = o / s.out[2] % s.out[1] * s.stride[1] - s.pad[1] + kh * s.dil[1];
        const int64_t iw = o % s.out[2] * s.stride[2] - s.pad[2] + kw * s.dil[2];
        if (id < 0 || id >= s.in[0] || ih < 0 || ih >= s.in[1] || iw < 0 || iw >= s.in[2]) continue;
        const T g = dy[(n * s.out_pixels() + o) * s.out_c + k];
        const T* in = x + (((n * s.in[0] + id) * s.in[1] + ih) * s.in[2] + iw) * s.in_c + c0;
        for (int64_t c = 0; c < gc; ++c) out[c] += g * in[c];
      }
    }
}

int64_t conv_backward_weight_workspace(const ConvShape&, int) { return 0; }

template <class T>
void conv_backward_weight(const Exec& exec, const ConvShape& s, const T* dy, const T* x, T* dw,
                          T* db) {
  parallel_for(exec, s.out_c, s.macs(), [&](int64_t k, int) {
    backward_weight_filter(s, k, dy, x, dw + k * s.taps() * s.group_in_c());
    if (db == nullptr) return;
    T sum = 0;
    for (int64_t row = 0; row < s.n * s.out_pixels(); ++row) sum += dy[row * s.out_c + k];
    db[k] = sum;
  });
}

template <class T>
void add(Ops<T>& table) {
  table.conv_backward_weight_workspace = conv_backward_weight_workspace;
  table.conv_backward_weight = conv_backward_weight<T>;
}

}  // namespace

namespace CONVGRAD_ISA {
void add_conv_backward_weight(Ops<float>& table) { add(table); }
void add_conv_backward_weight(Ops<double>& table) { add(table); }
}  // namespace CONVGRAD_ISA
}  // namespace convgrad::cpu
