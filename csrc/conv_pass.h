// A convolution as passes: dst[p] = b + sum over taps t of src[p's window at t] * w[t].
//
// Forward is one pass over y. backward_input is one pass per phase of the stride: the input pixels
// r, r + stride, r + 2 stride, ... are reached by every (stride / gcd(stride, dilation))-th tap,
// and among themselves they see dy as an ordinary stride-1 convolution with those taps flipped.
#pragma once
#include "integers.h"
#include "shape.h"

namespace convgrad {
namespace {

// One axis of a pass. Position p < count writes dst_first + p dst_step and reads, for tap t < taps,
// src_first + p src_step + t tap_step: a zero where that is outside [0, src). Steps of src are
// positive. Tap t has the weight w_first + t w_step of w_size.
struct Axis {
  int64_t src, dst, count;
  int64_t dst_first, dst_step, src_first, src_step;
  int64_t taps, tap_step, w_first, w_step, w_size;

  constexpr int64_t src_last() const {  // of the last position's last tap
    return src_first + (count - 1) * src_step + (taps - 1) * tap_step;
  }
  // How much of src `positions` windows side by side cover.
  constexpr int64_t extent(int64_t positions) const {
    return taps == 0 ? 0 : (positions - 1) * src_step + (taps - 1) * tap_step + 1;
  }
};

// src (n, axis.src, groups * src_c) -> dst (n, axis.dst, groups * dst_c).
struct Pass {
  Axis axis[3];
  int64_t n, groups, src_c, dst_c;       // channels per group
  int64_t w_group, w_dst, w_src, w_tap;  // strides of w, in elements
  int64_t bias_c;                        // the bias repeats after so many channels of a group

  constexpr int64_t taps() const { return axis[0].taps * axis[1].taps * axis[2].taps; }
  constexpr int64_t positions() const { return axis[0].count * axis[1].count * axis[2].count; }
  constexpr int64_t macs() const {
    return n * positions() * groups * dst_c * max_of(1, taps() * src_c);
  }
  constexpr bool padded() const {
    if (taps() == 0) return false;
    for (const Axis& a : axis)
      if (a.src_first < 0 || a.src_last() >= a.src) return true;
    return false;
  }
  // Offset in w of a tap of group 0 and channels 0.
  constexpr int64_t w_offset(int64_t td, int64_t th, int64_t tw) const {
    const int64_t d = axis[0].w_first + td * axis[0].w_step;
    const int64_t h = axis[1].w_first + th * axis[1].w_step;
    const int64_t w = axis[2].w_first + tw * axis[2].w_step;
    return ((d * axis[1].w_size + h) * axis[2].w_size + w) * w_tap;
  }
};

constexpr bool is_trivial(const Axis& a) {
  return a.src == 1 && a.dst == 1 && a.count == 1 && a.w_size == 1 && a.taps == 1;
}
constexpr bool is_pointwise(const Axis& a) {
  return a.w_size == 1 && a.taps == 1 && a.src_first == 0 && a.src_step == 1 && a.dst_first == 0 &&
         a.dst_step == 1 && a.count == a.src && a.count == a.dst;
}

// The same pass with its pixels in as long rows as possible: a 1x1 convolution is one row of all
// pixels, and an axis of length 1 never is the innermost.
inline Pass simplified(Pass p) {
  if (is_pointwise(p.axis[0]) && is_pointwise(p.axis[1]) && is_pointwise(p.axis[2])) {
    Axis& row = p.axis[2];
    row.src = row.dst = row.count = p.n * p.positions();
    for (int i = 0; i < 2; ++i) p.axis[i].src = p.axis[i].dst = p.axis[i].count = 1;
    p.n = 1;
  }
  for (int from = 1; from >= 0; --from) {
    if (!is_trivial(p.axis[2])) break;
    const Axis last = p.axis[2];
    p.axis[2] = p.axis[from];
    p.axis[from] = last;
  }
  return p;
}

inline Pass forward_pass(const ConvShape& s) {
  Pass p{};
  p.n = s.n;
  p.groups = s.groups;
  p.src_c = s.group_in_c();
  p.dst_c = p.bias_c = s.group_out_c();
  p.w_tap = p.src_c;
  p.w_src = 1;
  p.w_dst = s.taps() * p.src_c;
  p.w_group = p.dst_c * p.w_dst;
  for (int i = 0; i < 3; ++i)
    p.axis[i] = {s.in[i],     s.out[i], s.out[i], 0, 1, -s.pad[i],
                 s.stride[i], s.ker[i], s.dil[i], 0, 1, s.ker[i]};
  return simplified(p);
}

constexpr int64_t gcd(int64_t a, int64_t b) { return b == 0 ? a : gcd(b, a % b); }

// The input positions phase, phase + stride, ... of one axis.
inline Axis backward_axis(const ConvShape& s, int i, int64_t phase) {
  Axis a{};
  a.src = s.out[i];
  a.dst = s.in[i];
  a.count = ceil_div(s.in[i] - phase, s.stride[i]);
  a.dst_first = phase;
  a.dst_step = s.stride[i];
  a.src_step = 1;
  a.w_size = s.ker[i];
  const int64_t common = gcd(s.stride[i], s.dil[i]), period = s.stride[i] / common;
  a.tap_step = s.dil[i] / common;
  a.w_step = -period;
  const int64_t at = phase + s.pad[i];
  int64_t first = 0;
  while (first < s.ker[i] && first < period && (at - first * s.dil[i]) % s.stride[i] != 0) ++first;
  if (first >= s.ker[i] || first >= period) return a;  // no window reaches this phase
  a.taps = (s.ker[i] - 1 - first) / period + 1;
  a.w_first = first + (a.taps - 1) * period;
  a.src_first = (at - a.w_first * s.dil[i]) / s.stride[i];
  return a;
}

// Windows that tile the width, as in most upsampling: an output pixel's taps lie side by side in
// dx, so that all phases of the width are one, of ker[2] * c channels.
constexpr bool tiles_width(const ConvShape& s) {
  return s.groups == 1 && s.ker[2] == s.stride[2] && s.dil[2] == 1 && s.pad[2] == 0 &&
         s.in[2] == s.out[2] * s.stride[2];
}

// Phases of one axis that hold a pixel.
constexpr int64_t phases(const ConvShape& s, int axis) {
  return axis == 2 && tiles_width(s) ? 1 : min_of(s.stride[axis], s.in[axis]);
}
constexpr int64_t phases(const ConvShape& s) { return phases(s, 0) * phases(s, 1) * phases(s, 2); }

inline Pass backward_pass(const ConvShape& s, int64_t phase) {
  Pass p{};
  p.n = s.n;
  p.groups = s.groups;
  p.src_c = s.group_out_c();
  p.dst_c = p.bias_c = s.group_in_c();
  p.w_tap = p.dst_c;
  p.w_dst = 1;
  p.w_src = s.taps() * p.dst_c;
  p.w_group = p.src_c * p.w_src;
  const int64_t of[3] = {phase / (phases(s, 1) * phases(s, 2)), phase / phases(s, 2) % phases(s, 1),
                         phase % phases(s, 2)};
  for (int i = 0; i < 3; ++i) p.axis[i] = backward_axis(s, i, of[i]);
  if (tiles_width(s)) {
    p.axis[2] = {s.out[2], s.out[2], s.out[2], 0, 1, 0, 1, 1, 1, 0, 1, 1};
    p.dst_c *= s.ker[2];
    p.w_tap *= s.ker[2];
  }
  return simplified(p);
}

}  // namespace
}  // namespace convgrad
