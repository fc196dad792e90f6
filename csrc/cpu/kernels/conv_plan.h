// How the direct convolution goes about a pass: method, boxes of output pixels, memory.
#pragma once
#include "conv_micro.h"
#include "conv_pass.h"

namespace convgrad::cpu {
namespace {

enum class Method { kTile, kSlide, kDepthwise };

constexpr int64_t kItems = 64;             // work items that a large pass is cut into, at least
constexpr int64_t kTermBlock = 4096;       // products summed in one run of an accumulator
constexpr int64_t kBoxBytes = 96 << 10;    // of src under a box: stays in the L2 cache
constexpr int64_t kPointBytes = 16 << 10;  // the same for one tap, in L1: each block reads it anew
constexpr int64_t kMaxScratch = 4 << 20;   // bytes per thread
constexpr int64_t kFewPixels = 20;         // too few pixels for the accumulators of half a row
constexpr int64_t kCacheBytes = 1 << 20;   // of a mask that does not stay in the L2 cache, at least

// A box of output positions is the work of one item, with the src below it read in place, or, where
// it hangs over the edge, its channels do not lie together or two pixels are to lie side by side,
// from a copy in the thread's scratch.
// Everything follows from the shape; and no choice here changes the order of any sum.
struct Plan {
  Pass pass;
  Method method;
  bool in_place;
  int64_t slide_taps;       // S of a sliding kernel, else 1
  int64_t rows, run;        // rows of taps, steps per row
  int64_t pixels;           // P, pixels per vector: 2 where the channels fill 1/2 or 3/2 of one,
  int pair_axis;            // then from the first and the second half of the box on this axis
  int64_t block_c, blocks;  // output channels per block, of block_c * pixels lanes
  int64_t box[3], boxes[3], extent[3];  // extent: of the src as read
  int64_t pitch[3];                     // of src pixels, as read: elements per slice, row, pixel
  int64_t chunks;                       // items that share a box, each with some of its blocks
  bool fetch_mask;                      // an item fetches the mask of the next one
  int64_t row;                          // elements in front of a thread's scratch for one row
  int64_t scratch;                      // elements per thread

  // Of so many positions on an axis; of an odd number two share one, and both compute it.
  constexpr int64_t vectors(int axis, int64_t positions) const {
    return axis == pair_axis ? ceil_div(positions, 2) : positions;
  }
  constexpr int64_t block_lanes() const { return block_c * pixels; }
  constexpr int64_t steps() const { return rows * run; }
  constexpr int64_t panel_size() const { return blocks * block_lanes() * steps() * slide_taps; }
  constexpr int64_t items() const {
    return pass.n * pass.groups * boxes[0] * boxes[1] * boxes[2] * chunks;
  }
};

constexpr bool can_slide(const Pass& p) {
  const Axis& w = p.axis[2];
  return (w.taps == 2 || w.taps == 3 || w.taps == 5) && w.tap_step == 1 && w.src_step == 1;
}
constexpr bool can_depthwise(const Pass& p) { return p.groups > 1 && p.src_c == 1 && p.dst_c == 1; }

// The largest even cut of `count` into pieces of at most `most`.
constexpr int64_t even_piece(int64_t count, int64_t most) {
  return ceil_div(count, ceil_div(count, max_of(1, most)));
}

// Boxes of at most `most` positions over at most `budget` src pixels, with as little overlap of the
// src below them as possible.
inline void choose_box(Plan& plan, int64_t most, int64_t budget) {
  const Axis *d = &plan.pass.axis[0], *h = d + 1, *w = d + 2;
  int64_t width = w->count;
  while (width > 12 && (width > most || d->extent(1) * h->extent(1) * w->extent(width) > budget))
    width = ceil_div(width, 2);
  plan.box[0] = plan.box[1] = 1;
  plan.box[2] = width;
  double least = -1;
  for (int64_t slices = 1; slices <= min_of(8, d->count); ++slices) {
    const int64_t under = max_of(1, d->extent(slices) * w->extent(width));
    const int64_t room = (budget / under - h->extent(1)) / h->src_step + 1;
    const int64_t fit = min_of(room, most / (slices * width));
    if (fit < 1) break;
    const int64_t height = even_piece(h->count, fit);
    const double read = static_cast<double>(d->extent(slices)) * h->extent(height);
    const double cost = read / (slices * height);
    if (least >= 0 && cost >= least) continue;
    least = cost;
    plan.box[0] = slices;
    plan.box[1] = height;
  }
}

template <class T>
Plan make_plan(const Pass& pass, Method method) {
  Plan plan{};
  Pass& p = plan.pass = pass;
  plan.method = method;
  if (method == Method::kDepthwise) {  // channels side by side, each its own group
    p.src_c = p.dst_c = p.bias_c = p.groups;
    p.w_dst = p.w_group;
    p.groups = 1;
  }
  const Axis* a = p.axis;
  const bool depthwise = method == Method::kDepthwise;
  const int64_t half = kLanes<T> / 2, halves = ceil_div(p.dst_c, half);
  const bool pairs =
      p.taps() * p.src_c <= kTermBlock &&
      ((halves == 1 && !depthwise) || (halves == 3 && method == Method::kTile && p.taps() > 1));
  plan.pixels = pairs ? 2 : 1;
  plan.in_place = !p.padded() && plan.pixels == 1 &&
                  (depthwise ? p.src_c % kLanes<T> == 0 : p.groups == 1 || p.src_c >= 8);
  plan.slide_taps = method == Method::kSlide || (depthwise && can_slide(p)) ? a[2].taps : 1;
  const bool joined = (a[2].tap_step == 1 || a[2].taps == 1) && (p.groups == 1 || !plan.in_place);
  plan.rows = a[0].taps * a[1].taps;
  plan.run = depthwise ? 1 : p.src_c;
  if (method == Method::kTile && joined)
    plan.run *= a[2].taps;
  else if (plan.slide_taps == 1)
    plan.rows *= a[2].taps;
  plan.block_c = pairs ? halves * half : (method == Method::kTile ? 2 : 1) * kLanes<T>;
  plan.blocks = ceil_div(p.dst_c, plan.block_c);

  const int64_t pixel_bytes = max_of(1, p.src_c) * static_cast<int64_t>(sizeof(T));
  choose_box(plan, max_of(kItems, p.n * p.groups * p.positions() / kItems),
             (p.taps() <= 1 ? kPointBytes : kBoxBytes) / pixel_bytes);
  plan.pair_axis = !pairs ? -1 : plan.box[2] < kFewPixels && plan.box[1] > 1 ? 1 : 2;
  int64_t boxes = p.n * p.groups;
  for (int i = 0; i < 3; ++i) {
    plan.boxes[i] = ceil_div(a[i].count, max_of(1, plan.box[i]));
    plan.extent[i] = a[i].extent(plan.vectors(i, plan.box[i]));
    boxes *= plan.boxes[i];
  }
  plan.chunks = boxes == 0 ? 1 : max_of(1, min_of(plan.blocks, ceil_div(kItems, boxes)));
  const int64_t dst = p.n * a[0].dst * a[1].dst * a[2].dst * p.groups * p.dst_c;
  plan.fetch_mask =
      !depthwise && plan.chunks == 1 && dst * static_cast<int64_t>(sizeof(T)) >= kCacheBytes;
  plan.pitch[2] = plan.in_place ? p.groups * p.src_c : p.src_c * plan.pixels;
  plan.pitch[1] = plan.pitch[2] * (plan.in_place ? a[2].src : plan.extent[2]);
  plan.pitch[0] = plan.pitch[1] * (plan.in_place ? a[1].src : plan.extent[1]);
  // Before their pixels lie side by side, two rows more; and a vector of slack: depthwise loads go
  // beyond the last channel.
  plan.row = pairs ? a[2].extent(plan.box[2]) * p.src_c : 0;
  plan.scratch = plan.in_place ? 0 : 2 * plan.row + plan.extent[0] * plan.pitch[0] + kLanes<T>;
  return plan;
}

// The smallest box's scratch must be within bounds (a huge dilation would need all of the image).
template <class T>
bool is_bounded(const Pass& p) {
  double bytes = static_cast<double>(sizeof(T)) * static_cast<double>(p.src_c * p.groups);
  for (int i = 0; i < 3; ++i)
    bytes *= static_cast<double>(p.axis[i].extent(i < 2 ? 1 : min_of(12, p.axis[i].count)));
  return bytes <= kMaxScratch;
}

// ---- the workspace of passes that run at once: of each, offsets, bias and panels; then scratch
// per thread ----

constexpr int kMostPasses = 8;
constexpr int64_t aligned(int64_t bytes) { return ceil_div(bytes, 64) * 64; }

struct WorkspaceMap {
  int64_t bias, panels, end, scratch;  // offsets in a pass's part, and bytes of scratch
};
template <class T>
WorkspaceMap map_workspace(const Plan& plan) {
  constexpr int64_t kSize = sizeof(T);
  WorkspaceMap map;
  map.bias = aligned(plan.rows * static_cast<int64_t>(sizeof(int64_t)));
  map.panels = map.bias + aligned(plan.pass.groups * plan.blocks * plan.block_lanes() * kSize);
  map.end = map.panels + aligned(plan.pass.groups * plan.panel_size() * kSize);
  map.scratch = aligned(plan.scratch * kSize) + 64;  // threads do not share a cache line
  return map;
}
template <class T>
int64_t direct_workspace(const Plan* plans, int count, int threads) {
  int64_t bytes = 0, scratch = 0;
  for (int i = 0; i < count; ++i) {
    const WorkspaceMap map = map_workspace<T>(plans[i]);
    bytes += map.end;
    scratch = max_of(scratch, map.scratch);
  }
  return bytes + threads * scratch;
}

}  // namespace
}  // namespace convgrad::cpu
