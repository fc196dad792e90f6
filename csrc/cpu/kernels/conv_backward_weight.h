// The plan of a backward_weight: how output pixels and results are cut into work.
//
//   dw[k, tap, c] = sum over images and output pixels o of dy[o, k] x[o * stride - pad + tap * dil,
//   c]
//
// Output pixels are cut into strips of some 128 to 512 (a box over n, d, h, w), consecutive strips
// into chunks; each chunk sums into a dw of its own in the workspace, and the chunks are added in
// order. Within a strip the sum runs in registers. Strips and chunks follow from the shape alone.
//
// Results are cut into units: one group, one block of output channels (`width`, whole vectors) and
// some taps. A unit's partial sums are a dense matrix, row (tap, c) and column k. A work item is a
// few units of one chunk, so that there are about 64 items or more whatever the shape.
#pragma once
#include "shape.h"
#include "vec.h"

namespace convgrad::cpu {
namespace {

struct DwPlan {
  // kTile: any shape, 6 or 12 (tap, c) rows by 2 vectors of k. kSlide: see can_slide_weight.
  // kDepthwise: one input and one output channel per group, vectors of channels.
  ConvAlgorithm kernel;
  int64_t groups, in_c, out_c;  // as the kernel sees them: depthwise is one group, C = 1
  int64_t width, blocks;        // output channels per unit (padded), units per group and tap set
  int64_t rows, tap_sets;       // (tap, c) rows per unit; units per group and block
  bool pack;                    // dy of a strip and block is copied, pixel after pixel
  int64_t box[4], count[4];     // strip sizes and numbers of strips along n, d, h, w
  int64_t strips_per_chunk, chunks, units_per_item;
  int64_t partial, scratch;  // elements of one chunk's sums, of one thread's packed strip

  int64_t units() const { return groups * blocks * tap_sets; }
  int64_t strips() const { return count[0] * count[1] * count[2] * count[3]; }
  int64_t unit_size() const { return rows * width; }
};

// Output pixels lo <= o < hi along n, d, h, w.
struct Box {
  int64_t lo[4], hi[4];
};

inline Box strip_box(const ConvShape& s, const DwPlan& p, int64_t strip) {
  const int64_t size[4] = {s.n, s.out[0], s.out[1], s.out[2]};
  Box box;
  for (int i = 3; i >= 0; --i) {
    box.lo[i] = strip % p.count[i] * p.box[i];
    box.hi[i] = min_of(box.lo[i] + p.box[i], size[i]);
    strip /= p.count[i];
  }
  return box;
}

// The part of [lo, hi) along `axis` whose input coordinate for tap k lies inside the input.
inline void clip_outputs(const ConvShape& s, int axis, int64_t k, int64_t* lo, int64_t* hi) {
  const int64_t shift = s.pad[axis] - k * s.dil[axis];  // o * stride >= shift, < in + shift
  *lo = max_of(*lo, shift > 0 ? ceil_div(shift, s.stride[axis]) : 0);
  *hi = min_of(*hi, s.in[axis] + shift > 0 ? ceil_div(s.in[axis] + shift, s.stride[axis]) : 0);
}

// Taps [lo, hi) of `axis` that lie inside the input for output coordinate o.
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

// segment(lo, hi, taps) for runs [lo, hi) of output coordinates in [begin, end) that have the same
// taps inside the input: one for the interior, one per coordinate at the borders.
template <class Segment>
void for_segments(const ConvShape& s, int axis, int64_t begin, int64_t end,
                  const Segment& segment) {
  int64_t lo = begin, hi = end;
  clip_outputs(s, axis, 0, &lo, &hi);
  clip_outputs(s, axis, s.ker[axis] - 1, &lo, &hi);
  for (int64_t o = begin; o < end;) {
    const int64_t next = o == lo && lo < hi ? hi : o + 1;
    const TapRange taps = taps_inside(s, axis, o);
    if (taps.lo < taps.hi) segment(o, next, taps);
    o = next;
  }
}

// Strips: whole rows, then planes, volumes and images until there are about `target` pixels.
inline void plan_strips(const ConvShape& s, int64_t target, DwPlan& p) {
  const int64_t size[4] = {s.n, s.out[0], s.out[1], s.out[2]};
  int64_t pixels = 1;
  for (int i = 3; i >= 0; --i) {
    const int64_t most = i == 3 ? 2 * target : max_of(1, target / pixels);
    p.count[i] = ceil_div(size[i], most);
    p.box[i] = p.count[i] > 0 ? ceil_div(size[i], p.count[i]) : 1;
    if (p.count[i] > 0) p.count[i] = ceil_div(size[i], p.box[i]);
    pixels *= p.box[i];
  }
  p.scratch = ceil_div(pixels * p.width, 16) * 16;
}

// Chunks: at most 64, of at least 512 pixels, and their partial sums together at most 2^21 elements
// (or one chunk's).
inline void plan_chunks(const ConvShape& s, DwPlan& p) {
  p.partial = ceil_div(p.units() * p.unit_size() + p.groups * p.blocks * p.width, 16) * 16;
  const int64_t pixels = s.n * s.out_pixels();
  const int64_t wanted =
      max_of(1, min_of(min_of(64, pixels / 512), (int64_t{1} << 21) / max_of(p.partial, 1)));
  p.strips_per_chunk = max_of(1, ceil_div(p.strips(), wanted));
  p.chunks = max_of(1, ceil_div(p.strips(), p.strips_per_chunk));
  p.units_per_item = max_of(1, p.units() * p.chunks / 64);
}

// Two rows of pixels side by side in one vector, where that fills 16 lanes with 8 channels.
template <class T>
constexpr bool kPairs = sizeof(T) == 4 && kLanes<T> == 16;

inline bool is_depthwise(const ConvShape& s) {
  return s.groups > 1 && s.group_in_c() == 1 && s.group_out_c() == 1;
}
// Kernel width 3 or 5, stride and dilation 1 in the width. With one channel and one row of taps the
// sliding kernel has too few sums to hide latency.
inline bool can_slide_weight(const ConvShape& s) {
  return (s.ker[2] == 3 || s.ker[2] == 5) && s.stride[2] == 1 && s.dil[2] == 1 &&
         (s.group_in_c() > 1 || s.ker[1] > 1);
}
// Whether that beats the tile kernel: not where most columns are at the ends of a row, which see
// but some of the taps (10 columns: 0.18 ms against 0.16 on AVX-512, 0.36 against 0.24 on AVX2).
inline bool is_slide_weight_faster(const ConvShape& s) { return s.ker[2] == 3 || s.out[2] >= 12; }

// `kernel` is kTile, kSlide or kDepthwise, and supports s.
template <class T>
DwPlan plan_backward_weight(const ConvShape& s, ConvAlgorithm kernel) {
  constexpr int64_t L = kLanes<T>;
  const bool tile = kernel == ConvAlgorithm::kTile, slide = kernel == ConvAlgorithm::kSlide,
             depthwise = kernel == ConvAlgorithm::kDepthwise;
  DwPlan p{};
  p.kernel = kernel;
  p.groups = depthwise ? 1 : s.groups;
  p.in_c = s.group_in_c();
  p.out_c = depthwise ? s.out_c : s.group_out_c();
  p.width = tile && p.out_c > L ? 2 * L : L;
  if (kPairs<T> && !depthwise && p.out_c <= L / 2) p.width = L / 2;
  p.blocks = ceil_div(p.out_c, p.width);
  const bool whole_planes = slide && p.in_c == 1;
  p.rows = (whole_planes ? s.ker[1] : 1) * s.ker[2] * p.in_c;
  p.tap_sets = s.ker[0] * (whole_planes ? 1 : s.ker[1]);
  // In place, a pixel's `width` values share cache lines with channels of other blocks, and where
  // the distance between pixels is a power of two, lines evict each other: a copy pays once it is
  // read several times. Strips: what the units of one block read again and again stays in L1.
  p.pack = !depthwise && s.out_c * int64_t{sizeof(T)} > 64 && p.rows * p.tap_sets >= 64;
  plan_strips(s, tile ? 128 : p.pack ? 256 : 512, p);
  plan_chunks(s, p);
  return p;
}

}  // namespace
}  // namespace convgrad::cpu
