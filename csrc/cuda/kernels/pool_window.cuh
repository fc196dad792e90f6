// Which inputs a window covers and which windows cover an input: what all pooling kernels share.
#pragma once
#include "cuda/packs.cuh"

namespace convgrad::cuda {
namespace {

// A shape with what kernels divide by. Windows of an adaptive shape depend on in and out alone.
struct Pool : PoolShape {
  Divider by_in[3], by_out[3], by_stride[3], by_dil[3];

  explicit Pool(const PoolShape& s) : PoolShape(s) {
    for (int axis = 0; axis < 3; ++axis) {
      by_in[axis] = Divider(in[axis]);
      by_out[axis] = Divider(out[axis]);
      by_stride[axis] = Divider(stride[axis]);
      by_dil[axis] = Divider(dil[axis]);
    }
  }
};

// ceil(n / d), for n >= 0.
__device__ inline int64_t ceil_quotient(const Divider& by, int64_t n) {
  return by.quotient(n + by.d - 1);
}

// A window on one axis: its tap 0 lies at input coordinate `first`, taps [lo, hi) inside the input.
struct Span {
  int64_t first, lo, hi;
  __device__ int64_t size() const { return hi - lo; }
};
__device__ inline Span window(const Pool& s, int axis, int64_t o) {
  if (s.adaptive) {
    const int64_t first = s.by_out[axis].quotient(o * s.in[axis]);
    return {first, 0, ceil_quotient(s.by_out[axis], (o + 1) * s.in[axis]) - first};
  }
  const int64_t first = o * s.stride[axis] - s.pad[axis], room = s.in[axis] - first;
  const int64_t before = first >= 0 ? 0 : -first, ker = s.ker[axis];
  if (s.dil[axis] == 1) return {first, before, ker < room ? ker : room};
  const bool fits = (ker - 1) * s.dil[axis] < room;
  return {first, ceil_quotient(s.by_dil[axis], before),
          fits ? ker : ceil_quotient(s.by_dil[axis], room)};
}

// The windows [lo, hi) that reach over input coordinate i; where dil > 1 a tap may step over it.
struct Cover {
  int64_t lo, hi;
};
__device__ inline Cover cover(const Pool& s, int axis, int64_t i) {
  if (s.adaptive)
    return {s.by_in[axis].quotient(i * s.out[axis]),
            ceil_quotient(s.by_in[axis], (i + 1) * s.out[axis])};
  const int64_t at = i + s.pad[axis], reach = (s.ker[axis] - 1) * s.dil[axis];
  int64_t last = at, lo = 0;
  const int64_t beyond = s.by_stride[axis].split(last);
  if (reach < s.stride[axis])
    lo = last + (beyond > reach);
  else if (at > reach)
    lo = ceil_quotient(s.by_stride[axis], at - reach);
  return {lo, last + 1 < s.out[axis] ? last + 1 : s.out[axis]};
}

// The tap of window o that lies on input coordinate i of its reach; -1 if none does.
__device__ inline int64_t tap_on(const Pool& s, int axis, int64_t o, int64_t i) {
  if (s.adaptive) return i - s.by_out[axis].quotient(o * s.in[axis]);
  int64_t tap = i + s.pad[axis] - o * s.stride[axis];
  if (s.dil[axis] == 1) return tap;
  return s.by_dil[axis].split(tap) == 0 ? tap : -1;
}

// A window on an input: its place, its pixel's number in the image, and the number of the tap.
struct Covering {
  int64_t d, h, w, pixel, tap;
};
// fn(Covering) for each window with a tap on input (d, h, w), in order.
template <class Fn>
__device__ void for_covering(const Pool& s, int64_t id, int64_t ih, int64_t iw, const Fn& fn) {
  const Cover d = cover(s, 0, id), h = cover(s, 1, ih), w = cover(s, 2, iw);
#pragma unroll 1
  for (int64_t od = d.lo; od < d.hi; ++od) {
    const int64_t kd = tap_on(s, 0, od, id);
    if (kd < 0) continue;
#pragma unroll 1
    for (int64_t oh = h.lo; oh < h.hi; ++oh) {
      const int64_t kh = tap_on(s, 1, oh, ih);
      if (kh < 0) continue;
      const int64_t row = (od * s.out[1] + oh) * s.out[2], tap = (kd * s.ker[1] + kh) * s.ker[2];
#pragma unroll 1
      for (int64_t ow = w.lo; ow < w.hi; ++ow) {
        const int64_t kw = tap_on(s, 2, ow, iw);
        if (kw >= 0) fn(Covering{od, oh, ow, row + ow, tap + kw});
      }
    }
  }
}

// Pack number i of an array (n, size, c): its image, its pixel in the image, and where it begins.
struct Place {
  int64_t n, d, h, w, c;
};
__device__ inline Place place_of(int64_t i, const Divider (&by_size)[3], const Divider& by_packs,
                                 int width) {
  Place p;
  p.c = by_packs.split(i) * width;
  p.w = by_size[2].split(i);
  p.h = by_size[1].split(i);
  p.d = by_size[0].split(i);
  p.n = i;
  return p;
}

// fn(address of the tap's input, tap number) for the taps of a window inside the input, in order;
// `image` is the channel wanted of its image's first pixel.
template <class T, class Fn>
__device__ void for_taps(const Pool& s, const Span& d, const Span& h, const Span& w, const T* image,
                         const Fn& fn) {
  const int64_t step = s.dil[2] * s.c;
  for (int64_t kd = d.lo; kd < d.hi; ++kd)
    for (int64_t kh = h.lo; kh < h.hi; ++kh) {
      const int64_t row = (d.first + kd * s.dil[0]) * s.in[1] + h.first + kh * s.dil[1];
      const T* at = image + (row * s.in[2] + w.first) * s.c + w.lo * step;
      int32_t tap = int32_t((kd * s.ker[1] + kh) * s.ker[2] + w.lo);
      for (int32_t left = int32_t(w.size()); left > 0; --left, ++tap, at += step) fn(at, tap);
    }
}

// ---- windows of many taps: one block each, whose threads share taps and channels out ----

constexpr int64_t kManyTaps = 32;  // more than so many
constexpr int kWideThreads = 256;

struct WideShape {
  int lanes;       // threads side by side over packs of channels; the others take other taps
  int64_t groups;  // of so many packs
  int64_t parts;   // of the taps of a window, which different blocks do
  int64_t items;   // blocks in all
  Divider by_groups, by_parts;

  WideShape(const PoolShape& s, int64_t packs, int64_t parts_)
      : lanes(power_of_two(packs, kWarp)), groups(ceil_div(packs, lanes)), parts(parts_) {
    items = s.n * s.out_pixels() * groups * parts;
    by_groups = Divider(std::max<int64_t>(groups, 1));
    by_parts = Divider(parts);
  }
  dim3 grid() const { return dim3(unsigned(std::min(items, kMaxBlocks))); }
};

// The inner loop of a wide kernel: fn(input pixel in its image, tap number) for this thread's share
// of part `part` of the taps of the window (d, h, w).
template <class Fn>
__device__ void for_shared_taps(const Pool& s, const WideShape& wide, const Span& d, const Span& h,
                                const Span& w, int64_t part, const Fn& fn) {
  const uint32_t width = uint32_t(w.size()), plane = uint32_t(h.size()) * width;
  const int64_t taps = d.size() * plane, per_part = ceil_div(taps, wide.parts);
  const int64_t end = taps < (part + 1) * per_part ? taps : (part + 1) * per_part;
  for (int64_t t = part * per_part + threadIdx.x / wide.lanes; t < end;
       t += kWideThreads / wide.lanes) {
    const uint32_t in_plane = uint32_t(t) % plane;
    const int64_t kd = d.lo + uint32_t(t) / plane, kh = h.lo + in_plane / width;
    const int64_t kw = w.lo + in_plane % width;
    fn(((d.first + kd * s.dil[0]) * s.in[1] + h.first + kh * s.dil[1]) * s.in[2] + w.first +
           kw * s.dil[2],
       (kd * s.ker[1] + kh) * s.ker[2] + kw);
  }
}

}  // namespace
}  // namespace convgrad::cuda
