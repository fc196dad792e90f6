// Shapes of convolution and pooling, always lifted to 3-D, and the only output-size formula.
//
// Index 0 is depth, 1 height, 2 width; a 2-D image has depth 1, a 1-D signal depth and height 1.
// All sizes are counted in elements and held as int64, so that offsets computed from them are too.
#pragma once
#include <cstdint>

namespace convgrad {

// Number of window positions along one axis; dilation 1 means none. Not positive: no window fits.
constexpr int64_t out_size(int64_t in, int64_t kernel, int64_t stride, int64_t pad_lo,
                           int64_t pad_hi, int64_t dilation) {
  const int64_t room = in + pad_lo + pad_hi - (dilation * (kernel - 1) + 1);
  return room < 0 ? 0 : room / stride + 1;
}
static_assert(out_size(8, 3, 1, 0, 0, 2) == 4);
static_assert(out_size(5, 2, 2, 0, 0, 1) == 2);
static_assert(out_size(2, 3, 1, 0, 0, 1) == 0);

// How a convolution is computed: kAuto leaves it to the backend, which knows the shape. The others
// are for tests and measurements; where one does not support the shape, it is as good as kAuto.
enum class ConvAlgorithm { kAuto, kGeneric, kTile, kSlide, kDepthwise, kWinograd, kProduct, kFold };

// x (n, in, in_c) -> y (n, out, out_c), w (out_c, ker, in_c / groups): all channels-last.
// A transposed convolution is the same shape read backwards: its input is `out`, its output `in`.
struct ConvShape {
  int64_t n, groups, in_c, out_c;
  int64_t in[3], ker[3], out[3], stride[3], pad[3], dil[3];  // pad: the low side
  ConvAlgorithm algorithm;
  bool exact;  // only algorithms with the error of a plain sum: no kWinograd

  constexpr int64_t taps() const { return ker[0] * ker[1] * ker[2]; }
  constexpr int64_t in_pixels() const { return in[0] * in[1] * in[2]; }
  constexpr int64_t out_pixels() const { return out[0] * out[1] * out[2]; }
  constexpr int64_t group_in_c() const { return in_c / groups; }
  constexpr int64_t group_out_c() const { return out_c / groups; }
  constexpr int64_t x_size() const { return n * in_pixels() * in_c; }
  constexpr int64_t y_size() const { return n * out_pixels() * out_c; }
  constexpr int64_t w_size() const { return out_c * taps() * group_in_c(); }
  constexpr int64_t macs() const { return y_size() * taps() * group_in_c(); }
};

// x (n, in, c) -> y (n, out, c), channels-last. Windows may hang over the edge (pad, ceil_mode),
// but each has a tap inside.
struct PoolShape {
  int64_t n, c;
  int64_t in[3], ker[3], out[3], stride[3], pad[3], dil[3];
  // Window o of an axis covers [o in / out, ceil((o + 1) in / out)); ker is the widest, stride, pad
  // and dil are unused.
  bool adaptive;
  // An average is divided by `divisor`, or where it is 0 by the window's number of inputs, padding
  // included if count_pad.
  bool count_pad;
  int64_t divisor;

  constexpr int64_t taps() const { return ker[0] * ker[1] * ker[2]; }
  constexpr int64_t in_pixels() const { return in[0] * in[1] * in[2]; }
  constexpr int64_t out_pixels() const { return out[0] * out[1] * out[2]; }
  constexpr int64_t x_size() const { return n * in_pixels() * c; }
  constexpr int64_t y_size() const { return n * out_pixels() * c; }
  constexpr int64_t tap_bytes() const { return taps() <= 256 ? 1 : 4; }
};

// What a caller said of a convolution, as it was said: `spatial` axes of each, lifted by the maker.
struct ConvArgs {
  int spatial;                                    // 1, 2 or 3
  int64_t stride[3], dilation[3], output_pad[3];  // output_pad: transposed convolution alone
  int64_t pad_lo[3], pad_hi[3];
  bool same;  // padding='same': pad_lo and pad_hi follow from the kernel; stride must be 1
  int64_t groups;
  ConvAlgorithm algorithm;
  bool exact;
};

// Each checks everything, sizes beyond 64 bits too, and throws std::invalid_argument "[op] rule.
// Got value.". x_shape is (N, C, *spatial), w_shape (K, C / groups, *kernel) or, transposed, (C, K
// / groups, *kernel); both have spatial + 2 entries. b_size is -1 without bias.
ConvShape make_conv_shape(const char* op, const int64_t* x_shape, const int64_t* w_shape,
                          int64_t b_size, const ConvArgs& args);
ConvShape make_conv_transpose_shape(const char* op, const int64_t* x_shape, const int64_t* w_shape,
                                    int64_t b_size, const ConvArgs& args);

// What a caller said of pooling: `spatial` entries of each.
struct PoolArgs {
  int spatial;
  int64_t kernel[3], stride[3], pad[3], dilation[3];
  bool ceil_mode;
};
// Output size per axis: (in + 2 pad - dilation (kernel - 1) - 1) / stride + 1, rounded up if
// ceil_mode, but the last window must start inside the input or its left padding.
PoolShape make_pool_shape(const char* op, const int64_t* x_shape, const PoolArgs& args);
// out_size: one entry per axis, -1 keeps the input's size.
PoolShape make_adaptive_pool_shape(const char* op, int spatial, const int64_t* x_shape,
                                   const int64_t* out_size);

}  // namespace convgrad
