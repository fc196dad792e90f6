#include "shape.h"

#include <limits>
#include <sstream>
#include <stdexcept>
#include <string>

namespace convgrad {
namespace {

// Every buffer of one call, in elements, must stay below this: bytes of float64 then fit int64.
constexpr int64_t kMaxElements = std::numeric_limits<int64_t>::max() / 16;

std::string text(const int64_t* v, int n) {
  std::ostringstream out;
  out << '(';
  for (int i = 0; i < n; ++i) out << v[i] << (i + 1 < n ? ", " : n == 1 ? "," : "");
  out << ')';
  return out.str();
}

template <class... Parts>
[[noreturn]] void fail(const char* op, const Parts&... parts) {
  std::ostringstream out;
  out << '[' << op << "] ";
  (out << ... << parts);
  throw std::invalid_argument(out.str());
}

int64_t checked_product(const char* op, const char* what, const int64_t* v, int n) {
  int64_t product = 1;
  for (int i = 0; i < n; ++i) {
    if (v[i] == 0) return 0;
  }
  for (int i = 0; i < n; ++i) {
    if (__builtin_mul_overflow(product, v[i], &product) || product > kMaxElements)
      fail(op, "The number of elements of the ", what, " overflows. Got shape ", text(v, n), '.');
  }
  return product;
}

void check_positive(const char* op, const char* name, const int64_t* v, int n) {
  for (int i = 0; i < n; ++i) {
    if (v[i] < 1) fail(op, name, " must be at least 1. Got ", text(v, n), '.');
  }
}

[[noreturn]] void too_large(const char* op, const char* name, const int64_t* v, int n) {
  fail(op, name, " is too large. Got ", text(v, n), '.');
}

// So that sums of a few of them fit 64 bits.
void check_not_huge(const char* op, const char* name, const int64_t* v, int n) {
  for (int i = 0; i < n; ++i)
    if (v[i] > kMaxElements) too_large(op, name, v, n);
}

void check_args(const char* op, const ConvArgs& a, const int64_t* kernel) {
  check_positive(op, "stride", a.stride, a.spatial);
  check_positive(op, "dilation", a.dilation, a.spatial);
  check_positive(op, "groups", &a.groups, 1);
  check_positive(op, "The kernel size", kernel, a.spatial);
  check_not_huge(op, "stride", a.stride, a.spatial);
  check_not_huge(op, "padding", a.pad_lo, a.spatial);
  check_not_huge(op, "padding", a.pad_hi, a.spatial);
  for (int i = 0; i < a.spatial; ++i) {
    if (a.pad_lo[i] < 0 || a.pad_hi[i] < 0)
      fail(op, "padding must not be negative. Got ", text(a.pad_lo, a.spatial), '.');
    if (a.same && a.stride[i] != 1)
      fail(op, "padding='same' needs stride 1. Got stride ", text(a.stride, a.spatial), '.');
    if (a.dilation[i] > kMaxElements / kernel[i]) too_large(op, "dilation", a.dilation, a.spatial);
  }
}

void check_bias(const char* op, int64_t b_size, int64_t out_c) {
  if (b_size >= 0 && b_size != out_c)
    fail(op, "bias must have one value per output channel, ", out_c, ". Got ", b_size, '.');
}

// Fills the lifted axes of `s` from the caller's; returns through lo/hi the padding of each side.
void lift(const ConvArgs& a, const int64_t* kernel, ConvShape& s, int64_t* lo, int64_t* hi) {
  for (int i = 0; i < 3; ++i) {
    s.in[i] = s.ker[i] = s.out[i] = s.stride[i] = s.dil[i] = 1;
    s.pad[i] = 0;
  }
  for (int i = 0; i < a.spatial; ++i) {
    const int axis = 3 - a.spatial + i;
    const int64_t same = a.dilation[i] * (kernel[i] - 1);
    lo[i] = a.same ? same / 2 : a.pad_lo[i];
    hi[i] = a.same ? same - same / 2 : a.pad_hi[i];
    s.ker[axis] = kernel[i];
    s.stride[axis] = a.stride[i];
    s.dil[axis] = a.dilation[i];
    s.pad[axis] = lo[i];
  }
}

void check_sizes(const char* op, const ConvShape& s) {
  const int64_t x[] = {s.n, s.in_c, s.in[0], s.in[1], s.in[2]};
  const int64_t y[] = {s.n, s.out_c, s.out[0], s.out[1], s.out[2]};
  const int64_t w[] = {s.out_c, s.group_in_c(), s.ker[0], s.ker[1], s.ker[2]};
  checked_product(op, "input", x, 5);
  checked_product(op, "output", y, 5);
  checked_product(op, "weight", w, 5);
}

}  // namespace

ConvShape make_conv_shape(const char* op, const int64_t* x, const int64_t* w, int64_t b_size,
                          const ConvArgs& a) {
  const int rank = a.spatial + 2;
  check_args(op, a, w + 2);
  ConvShape s{};
  s.algorithm = a.algorithm;
  s.exact = a.exact;
  s.tf32 = a.tf32;
  s.n = x[0];
  s.groups = a.groups;
  s.in_c = x[1];
  s.out_c = w[0];
  if (s.out_c % a.groups)
    fail(op, "groups must divide the output channels. Got groups ", a.groups, " and weight ",
         text(w, rank), '.');
  const int64_t wanted[] = {w[1], a.groups};
  const int64_t in_c = checked_product(op, "input's channels", wanted, 2);
  if (in_c != s.in_c) {
    const bool looks_last = x[rank - 1] == in_c;
    fail(op, "The input must have ", in_c, " channels on axis 1 for weight ", text(w, rank),
         " and groups ", a.groups, ". Got input ", text(x, rank),
         looks_last ? ", which looks channels-last." : ".");
  }
  check_bias(op, b_size, s.out_c);
  int64_t lo[3], hi[3];
  lift(a, w + 2, s, lo, hi);
  for (int i = 0; i < a.spatial; ++i) {
    const int axis = 3 - a.spatial + i;
    s.in[axis] = x[2 + i];
    s.out[axis] = out_size(x[2 + i], w[2 + i], a.stride[i], lo[i], hi[i], a.dilation[i]);
    if (s.out[axis] < 1)
      fail(op, "The kernel is larger than the padded input. Got input ", text(x, rank), ", weight ",
           text(w, rank), ", padding ", text(lo, a.spatial), ", dilation ",
           text(a.dilation, a.spatial), '.');
  }
  check_sizes(op, s);
  return s;
}

ConvShape make_conv_transpose_shape(const char* op, const int64_t* x, const int64_t* w,
                                    int64_t b_size, const ConvArgs& a) {
  const int rank = a.spatial + 2;
  check_args(op, a, w + 2);
  ConvShape s{};
  s.algorithm = a.algorithm;
  s.exact = a.exact;
  s.tf32 = a.tf32;
  s.n = x[0];
  s.groups = a.groups;
  const int64_t out_channels[] = {w[1], a.groups};
  s.in_c = checked_product(op, "output's channels", out_channels, 2);
  s.out_c = w[0];
  if (w[0] != x[1])
    fail(op, "The input must have ", w[0], " channels on axis 1 for weight ", text(w, rank),
         ". Got input ", text(x, rank), x[rank - 1] == w[0] ? ", which looks channels-last." : ".");
  if (s.out_c % a.groups)
    fail(op, "groups must divide the input channels. Got groups ", a.groups, " and input ",
         text(x, rank), '.');
  check_bias(op, b_size, s.in_c);
  int64_t lo[3], hi[3];
  lift(a, w + 2, s, lo, hi);
  for (int i = 0; i < a.spatial; ++i) {
    const int axis = 3 - a.spatial + i;
    const int64_t extra = a.output_pad[i];
    if (extra < 0 || extra >= (a.stride[i] > a.dilation[i] ? a.stride[i] : a.dilation[i]))
      fail(op, "output_padding must be at least 0 and smaller than stride or dilation. Got ",
           text(a.output_pad, a.spatial), '.');
    int64_t size;
    if (__builtin_mul_overflow(x[2 + i] - 1, a.stride[i], &size) || size > 4 * kMaxElements)
      size = 4 * kMaxElements;
    size += a.dilation[i] * (w[2 + i] - 1) + 1 + extra - lo[i] - hi[i];
    if (x[2 + i] < 1 || size < 1)
      fail(op, "The output would be empty. Got input ", text(x, rank), ", weight ", text(w, rank),
           ", padding ", text(lo, a.spatial), '.');
    s.in[axis] = size;
    s.out[axis] = x[2 + i];
  }
  check_sizes(op, s);
  return s;
}

namespace {

// A PoolShape of x_shape (N, C, *spatial) with windows of one input.
PoolShape lifted_pool(const char* op, int spatial, const int64_t* x_shape) {
  PoolShape s{};
  s.n = x_shape[0];
  s.c = x_shape[1];
  for (int i = 0; i < 3; ++i) {
    s.in[i] = s.ker[i] = s.out[i] = s.stride[i] = s.dil[i] = 1;
    s.pad[i] = 0;
  }
  for (int i = 0; i < spatial; ++i) {
    if (x_shape[2 + i] < 1)
      fail(op, "The input must not be empty but for its batch. Got shape ",
           text(x_shape, spatial + 2), '.');
    s.in[3 - spatial + i] = x_shape[2 + i];
  }
  return s;
}

void check_pool_size(const char* op, const PoolShape& s) {
  const int64_t x[] = {s.n, s.c, s.in[0], s.in[1], s.in[2]};
  const int64_t y[] = {s.n, s.c, s.out[0], s.out[1], s.out[2]};
  checked_product(op, "input", x, 5);
  checked_product(op, "output", y, 5);
  if (checked_product(op, "window", s.ker, 3) > std::numeric_limits<int32_t>::max())
    fail(op, "A window must have fewer than 2^31 taps. Got ", text(s.ker, 3), '.');
}

}  // namespace

PoolShape make_pool_shape(const char* op, const int64_t* x, const PoolArgs& a) {
  const int rank = a.spatial + 2;
  check_positive(op, "kernel_size", a.kernel, a.spatial);
  check_positive(op, "stride", a.stride, a.spatial);
  check_positive(op, "dilation", a.dilation, a.spatial);
  PoolShape s = lifted_pool(op, a.spatial, x);
  for (int i = 0; i < a.spatial; ++i) {
    const int axis = 3 - a.spatial + i;
    if (a.pad[i] < 0 || a.pad[i] > a.kernel[i] / 2)
      fail(op, "padding must be at least 0 and at most half of kernel_size. Got padding ",
           text(a.pad, a.spatial), " and kernel_size ", text(a.kernel, a.spatial), '.');
    if (a.stride[i] > kMaxElements || a.kernel[i] > kMaxElements / a.dilation[i])
      fail(op, "kernel_size, stride or dilation is too large. Got ", text(a.kernel, a.spatial),
           ", ", text(a.stride, a.spatial), " and ", text(a.dilation, a.spatial), '.');
    s.ker[axis] = a.kernel[i];
    s.stride[axis] = a.stride[i];
    s.pad[axis] = a.pad[i];
    s.dil[axis] = a.dilation[i];
    const int64_t overhang = a.ceil_mode ? a.stride[i] - 1 : 0;
    int64_t out =
        out_size(x[2 + i], a.kernel[i], a.stride[i], a.pad[i], a.pad[i] + overhang, a.dilation[i]);
    if (a.ceil_mode && out > 0 && (out - 1) * a.stride[i] >= x[2 + i] + a.pad[i]) --out;
    if (out < 1)
      fail(op, "The window is larger than the padded input. Got input ", text(x, rank),
           ", kernel_size ", text(a.kernel, a.spatial), ", padding ", text(a.pad, a.spatial),
           ", dilation ", text(a.dilation, a.spatial), '.');
    s.out[axis] = out;
    // With dilation a window's taps may step over the whole input.
    for (int64_t o = 0; a.dilation[i] > x[2 + i] && o < out; ++o) {
      const int64_t first = o * a.stride[i] - a.pad[i];
      const int64_t tap =
          first >= 0 ? first : first + (-first + a.dilation[i] - 1) / a.dilation[i] * a.dilation[i];
      if (tap >= x[2 + i])
        fail(op, "Every window must have a tap on the input. Got input ", text(x, rank),
             ", padding ", text(a.pad, a.spatial), ", dilation ", text(a.dilation, a.spatial), '.');
    }
  }
  check_pool_size(op, s);
  return s;
}

PoolShape make_adaptive_pool_shape(const char* op, int spatial, const int64_t* x,
                                   const int64_t* out_size) {
  PoolShape s = lifted_pool(op, spatial, x);
  bool even = true;
  for (int i = 0; i < spatial; ++i) {
    const int axis = 3 - spatial + i;
    if (out_size[i] != -1 && out_size[i] < 1)
      fail(op, "output_size must be at least 1. Got ", text(out_size, spatial), '.');
    s.out[axis] = out_size[i] == -1 ? s.in[axis] : out_size[i];
    if (s.out[axis] > kMaxElements / s.in[axis])
      fail(op, "output_size is too large. Got ", text(out_size, spatial), '.');
    even = even && s.in[axis] % s.out[axis] == 0;
    // The widest window: it starts up to (out - 1) / out of an input early and ends as late.
    s.ker[axis] = s.in[axis] / s.out[axis] + (s.in[axis] % s.out[axis] == 0 ? 0 : 2);
  }
  s.adaptive = !even;
  for (int axis = 0; axis < 3 && even; ++axis) s.stride[axis] = s.ker[axis];
  check_pool_size(op, s);
  return s;
}

}  // namespace convgrad
