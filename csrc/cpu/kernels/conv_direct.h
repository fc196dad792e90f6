// Runs passes by the micro-kernels: packs the weights, then boxes of output pixels in parallel.
#pragma once
#include "conv_plan.h"
#include "parallel.h"

namespace convgrad::cpu {
namespace {

template <class T>
struct DirectCall {
  Plan plan;
  const T *src, *w;
  Epilogue<T> epilogue;
  T* dst;
  int64_t* offsets;  // per row of taps, from a position's first src element
  T *bias, *panels;
};

// Vectors in a block; the last block may be a narrow one.
template <class T>
int64_t block_vectors(const Plan& plan, int64_t block) {
  return min_of(plan.block_lanes() / kLanes<T>,
                ceil_div((plan.pass.dst_c - block * plan.block_c) * plan.pixels, kLanes<T>));
}

template <class T>
void pack_offsets(const DirectCall<T>& call) {
  const Plan& plan = call.plan;
  const Axis* a = plan.pass.axis;
  const int64_t across = plan.rows / max_of(1, a[0].taps * a[1].taps);
  int64_t* out = call.offsets;
  for (int64_t td = 0; td < a[0].taps; ++td)
    for (int64_t th = 0; th < a[1].taps; ++th)
      for (int64_t tw = 0; tw < across; ++tw)
        *out++ = td * a[0].tap_step * plan.pitch[0] + th * a[1].tap_step * plan.pitch[1] +
                 tw * a[2].tap_step * plan.pitch[2];
}

// w -> panel [td][th][tw][c][lanes] of one block, or [td][th][c][tw][lanes] to slide. Each channel
// has as many lanes as a vector has pixels; those beyond the last channel are zero.
template <class T>
void pack_panel(const DirectCall<T>& call, int64_t group, int64_t block, T* panel) {
  const Plan& plan = call.plan;
  const Pass& p = plan.pass;
  const Axis* a = p.axis;
  const int64_t width = block_vectors<T>(plan, block) * kLanes<T>, first = block * plan.block_c;
  const int64_t valid = plan.pixels * min_of(plan.block_c, p.dst_c - first);
  const int64_t depth = plan.method == Method::kDepthwise ? 1 : p.src_c;
  const bool slide = plan.method == Method::kSlide;
  const int64_t tap_pitch = slide ? width : depth * width;
  const int64_t c_pitch = slide ? a[2].taps * width : width;
  for (int64_t row = 0; row < a[0].taps * a[1].taps; ++row)
    for (int64_t tw = 0; tw < a[2].taps; ++tw) {
      const T* w = call.w + group * p.w_group + first * p.w_dst +
                   p.w_offset(row / a[1].taps, row % a[1].taps, tw);
      T* out = panel + row * a[2].taps * depth * width + tw * tap_pitch;
      for (int64_t c = 0; c < depth; ++c, w += p.w_src, out += c_pitch) {
        for (int64_t j = 0; j < valid; ++j) out[j] = w[(plan.pixels == 1 ? j : j / 2) * p.w_dst];
        for (int64_t j = valid; j < width; ++j) out[j] = 0;
      }
    }
}

template <class T>
void pack(const Exec& exec, const DirectCall<T>& call) {
  const Plan& plan = call.plan;
  const Pass& p = plan.pass;
  pack_offsets(call);
  const T* bias = call.epilogue.bias;
  const int64_t group_lanes = plan.blocks * plan.block_lanes();
  const int64_t vector_c = kLanes<T> / plan.pixels;
  for (int64_t i = 0; i < p.groups * group_lanes; ++i) {
    const int64_t c = i % group_lanes / kLanes<T> * vector_c + i % vector_c;
    call.bias[i] = bias && c < p.dst_c ? bias[i / group_lanes * p.bias_c + c % p.bias_c] : 0;
  }
  const int64_t block_size = plan.panel_size() / max_of(1, plan.blocks);
  parallel_for(exec, p.groups * plan.blocks, p.groups * plan.panel_size(), [&](int64_t i, int) {
    pack_panel(call, i / plan.blocks, i % plan.blocks, call.panels + i * block_size);
  });
}

// Most rows are short: a call of memcpy or memset would take as long as its work.
constexpr int64_t kLongRun = 512;
template <class T>
void copy_run(const T* from, int64_t n, T* out) {
  if (n >= kLongRun) {
    __builtin_memcpy(out, from, static_cast<size_t>(n) * sizeof(T));
    return;
  }
  int64_t i = 0;
  for (; i + kLanes<T> <= n; i += kLanes<T>) store(out + i, load(from + i));
  if (i < n) store_first(out + i, load_first(from + i, n - i), n - i);
}
template <class T>
void zero_run(int64_t n, T* out) {
  int64_t i = 0;
  for (; i + kLanes<T> <= n; i += kLanes<T>) store(out + i, Vec<T>{});
  if (i < n) store_first(out + i, Vec<T>{}, n - i);
}

// Copies pixels [from, to) of a src row, all channels of one group.
template <class T>
void copy_pixels(const Pass& p, const T* row, int64_t from, int64_t to, T* out) {
  if (p.groups == 1) return copy_run(row + from * p.src_c, (to - from) * p.src_c, out);
  for (int64_t i = from; i < to; ++i)
    for (int64_t c = 0; c < p.src_c; ++c) *out++ = row[i * p.groups * p.src_c + c];
}

// Pixels [first, first + count) of a src row, with zeros where they are outside; row may be null.
template <class T>
void copy_row(const Pass& p, const T* row, int64_t first, int64_t count, T* out) {
  const int64_t from = min_of(max_of(0, first), p.axis[2].src);
  const int64_t to = max_of(from, min_of(first + count, p.axis[2].src));
  if (row == nullptr || from == to) return zero_run(count * p.src_c, out);
  zero_run((from - first) * p.src_c, out);
  copy_pixels(p, row, from, to, out + (from - first) * p.src_c);
  zero_run((first + count - to) * p.src_c, out + (to - first) * p.src_c);
}

// out = a[0], b[0], a[1], b[1], ...
template <class T>
void zip(const T* __restrict a, const T* __restrict b, int64_t count, T* __restrict out) {
  for (int64_t i = 0; i < count; ++i) {
    out[2 * i] = a[i];
    out[2 * i + 1] = b[i];
  }
}

// The src under a box of `count` positions into scratch (extent, c, pixels). `image` is the image's
// first element of the group, `start` the src coordinates of the box.
template <class T>
void copy_box(const Plan& plan, const T* image, const int64_t start[3], const int64_t count[3],
              T* scratch) {
  const Pass& p = plan.pass;
  const Axis* a = p.axis;
  const auto copy = [&](int64_t d, int64_t h, T* out) {
    const bool inside = d >= 0 && d < a[0].src && h >= 0 && h < a[1].src;
    const T* row = inside ? image + (d * a[1].src + h) * a[2].src * p.groups * p.src_c : nullptr;
    copy_row(p, row, start[2], a[2].extent(count[2]), out);
  };
  int64_t extent[3], apart[3];  // apart: src pixels between the halves of the box
  for (int i = 0; i < 3; ++i) {
    const int64_t vectors = plan.vectors(i, count[i]);
    extent[i] = a[i].extent(vectors);
    apart[i] = (count[i] - vectors) * a[i].src_step;
  }
  T *first = scratch, *second = scratch + (plan.pair_axis == 1 ? plan.row : apart[2] * p.src_c);
  for (int64_t d = 0; d < extent[0]; ++d)
    for (int64_t h = 0; h < extent[1]; ++h) {
      T* out = scratch + 2 * plan.row + d * plan.pitch[0] + h * plan.pitch[1];
      copy(start[0] + d, start[1] + h, plan.pixels == 2 ? first : out);
      if (plan.pair_axis == 1) copy(start[0] + d, start[1] + h + apart[1], second);
      if (plan.pixels == 2) zip(first, second, extent[2] * p.src_c, out);
    }
}

template <class T>
const Kernels<T>& kernels_for(const Plan& plan, int64_t vectors) {
  const bool pair = plan.pixels == 2, depthwise = plan.method == Method::kDepthwise;
  switch (plan.slide_taps) {
    case 2:
      return depthwise ? kDepthwise<T, 2> : pair ? kSlide<T, 2, 2> : kSlide<T, 1, 2>;
    case 3:
      return depthwise ? kDepthwise<T, 3> : pair ? kSlide<T, 2, 3> : kSlide<T, 1, 3>;
    case 5:
      return depthwise ? kDepthwise<T, 5> : pair ? kSlide<T, 2, 5> : kSlide<T, 1, 5>;
  }
  if (depthwise) return kDepthwise<T, 1>;
  if (pair) return vectors == 1 ? kTile<T, 2, 1> : kTile<T, 2, 3>;
  return vectors == 1 ? kTile<T, 1, 1> : kTile<T, 1, 2>;
}

// One row of vectors of positions, in tiles as equal as can be.
template <class T>
void run_row(const Kernels<T>& kernels, const TileArgs<T>& args, int64_t width, const T* x, T* y) {
  const int64_t tiles = ceil_div(width, kernels.most), least = width / tiles,
                longer = width % tiles;
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t m = least + (tile < longer);
    kernels.of[m - 1](args, x, y);
    x += m * args.x_pitch;
    y += m * args.y_pitch;
  }
}

// Positions of a box that an item works on: where the first reads and writes, and how many vectors
// of them there are.
template <class T>
struct Box {
  const T* x;
  T* y;
  int64_t vectors[3];
  int64_t x_step[3], y_step[3];
  int64_t apart;  // elements of y between the pixels of a vector
};

// The box of an item: its group, image and first position.
struct Place {
  int64_t group, n, at[3];
};
inline Place place_of(const Plan& plan, int64_t item) {
  Place place;
  item /= plan.chunks;
  for (int i = 2; i >= 0; --i) {
    place.at[i] = item % plan.boxes[i] * plan.box[i];
    item /= plan.boxes[i];
  }
  place.group = item % plan.pass.groups;
  place.n = item / plan.pass.groups;
  return place;
}

// Of the first pixel that a box writes, in dst and its mask.
inline int64_t dst_offset(const Pass& p, const Place& place) {
  int64_t pixel = place.n;
  for (int i = 0; i < 3; ++i)
    pixel = pixel * p.axis[i].dst + p.axis[i].dst_first + place.at[i] * p.axis[i].dst_step;
  return (pixel * p.groups + place.group) * p.dst_c;
}

// `count` pixels of c channels. Inline: gcc drops the call of a function that only prefetches.
template <class T>
inline __attribute__((always_inline)) void fetch_pixels(const T* pixel, int64_t count,
                                                        int64_t pitch, int64_t c) {
  constexpr int64_t kLine = 64 / sizeof(T);
  if (pitch == c) {
    c *= count;
    count = 1;
  }
  for (; count > 0; --count, pixel += pitch)
    for (int64_t i = 0; i < c; i += kLine) __builtin_prefetch(pixel + i, 0, 2);
}

// The mask of row (d, h) of the box at `place`.
template <class T>
inline __attribute__((always_inline)) void fetch_mask(const DirectCall<T>& call, const Place& place,
                                                      int64_t d, int64_t h, const Box<T>& box) {
  const Pass& p = call.plan.pass;
  const T* row = call.epilogue.mask + dst_offset(p, place) + d * box.y_step[0] + h * box.y_step[1];
  fetch_pixels(row, box.vectors[2], box.y_step[2], p.dst_c);
  if (box.apart > 0) fetch_pixels(row + box.apart, box.vectors[2], box.y_step[2], p.dst_c);
}

// One block of channels of a box, in blocks of terms; the mask of `next`, if not null, is fetched.
template <class T>
void run_block(const DirectCall<T>& call, int64_t group, int64_t block, const Box<T>& box,
               const Place* next) {
  const Plan& plan = call.plan;
  const Pass& p = plan.pass;
  const int64_t vectors = block_vectors<T>(plan, block), width = vectors * kLanes<T>;
  const int64_t index = group * plan.blocks + block, first_c = block * plan.block_c;
  const Kernels<T>& kernels = kernels_for<T>(plan, vectors);
  const T* panel = call.panels + index * plan.block_lanes() * plan.steps() * plan.slide_taps;
  const int64_t terms = plan.run * plan.slide_taps;  // per row
  const int64_t some_rows = max_of(1, kTermBlock / max_of(1, terms));
  const int64_t some_run =
      terms <= kTermBlock ? plan.run : even_piece(plan.run, kTermBlock / plan.slide_taps);
  // The depthwise kernel reads all channels of a block from its first.
  const T* x = box.x + (plan.method == Method::kDepthwise ? first_c : 0);
  T* y = box.y + first_c;
  TileArgs<T> args;
  args.x_pitch = box.x_step[2];
  args.y_pitch = box.y_step[2];
  args.bias = call.bias + index * plan.block_lanes();
  args.last = min_of(plan.block_c, p.dst_c - first_c) - (vectors - 1) * kLanes<T> / plan.pixels;
  args.dst = call.dst;
  args.mask = call.epilogue.mask;
  args.first = true;
  args.apart = box.apart;
  int64_t row = 0, i = 0;
  do {
    args.offset = call.offsets + row;
    args.rows = min_of(some_rows, plan.rows - row);
    args.run = min_of(some_run, plan.run - i);
    args.relu = call.epilogue.relu && row + args.rows == plan.rows && i + args.run == plan.run;
    args.panel = panel + (row * plan.run + i) * width * plan.slide_taps;
    for (int64_t d = 0; d < box.vectors[0]; ++d)
      for (int64_t h = 0; h < box.vectors[1]; ++h) {
        if (next && args.first) fetch_mask(call, *next, d, h, box);
        run_row(kernels, args, box.vectors[2],
                x + i * plan.pixels + d * box.x_step[0] + h * box.x_step[1],
                y + d * box.y_step[0] + h * box.y_step[1]);
      }
    args.first = false;
    i += some_run;
    if (i >= plan.run) {
      i = 0;
      row += some_rows;
    }
  } while (row < plan.rows);
}

template <class T>
void run_item(const DirectCall<T>& call, int64_t item, T* scratch) {
  const Plan& plan = call.plan;
  const Pass& p = plan.pass;
  const Axis* a = p.axis;
  const Place place = place_of(plan, item);
  const T* image =
      call.src + (place.n * a[0].src * a[1].src * a[2].src * p.groups + place.group) * p.src_c;
  Box<T> box;
  box.x = image;
  box.y = call.dst + dst_offset(p, place);
  int64_t start[3], count[3], y_pitch = p.groups * p.dst_c;
  for (int i = 0; i < 3; ++i) {
    count[i] = min_of(plan.box[i], a[i].count - place.at[i]);
    box.vectors[i] = plan.vectors(i, count[i]);
    start[i] = a[i].src_first + place.at[i] * a[i].src_step;
    box.x_step[i] = a[i].src_step * plan.pitch[i];
    box.x += start[i] * plan.pitch[i];
  }
  box.apart = 0;
  for (int i = 2; i >= 0; --i) {
    box.y_step[i] = a[i].dst_step * y_pitch;
    box.apart += (count[i] - box.vectors[i]) * box.y_step[i];
    y_pitch *= a[i].dst;
  }
  if (!plan.in_place) {
    copy_box(plan, image, start, count, scratch);
    box.x = scratch + 2 * plan.row;
  }
  const int64_t chunk = item % plan.chunks, first = chunk * plan.blocks / plan.chunks;
  const int64_t last = (chunk + 1) * plan.blocks / plan.chunks;
  if (plan.method != Method::kDepthwise) {
    const Place next = place_of(plan, item + 1);
    const bool fetch = call.epilogue.mask && plan.fetch_mask && item + 1 < plan.items();
    for (int64_t block = first; block < last; ++block)
      run_block(call, place.group, block, box, fetch && block == first ? &next : nullptr);
    return;
  }
  // Each block reads channels of its own: row by row, so that the src of a row stays in L1.
  Box<T> row = box;
  row.vectors[0] = row.vectors[1] = 1;
  for (int64_t d = 0; d < box.vectors[0]; ++d)
    for (int64_t h = 0; h < box.vectors[1]; ++h) {
      row.x = box.x + d * box.x_step[0] + h * box.x_step[1];
      row.y = box.y + d * box.y_step[0] + h * box.y_step[1];
      for (int64_t block = first; block < last; ++block)
        run_block(call, place.group, block, row, nullptr);
    }
}

// Runs passes from one src to one dst, all at once: an item of each in turn, so that those next to
// one another in memory are so in time.
template <class T>
void run_direct(const Exec& exec, const Plan* plans, int count, const T* src, const T* w,
                const Epilogue<T>& epilogue, T* dst) {
  DirectCall<T> calls[kMostPasses];
  char* workspace = static_cast<char*>(exec.workspace);
  int64_t scratch = 0, items = 0, work = 0;
  for (int i = 0; i < count; ++i) {
    const WorkspaceMap map = map_workspace<T>(plans[i]);
    const Pass& p = plans[i].pass;
    calls[i] = {plans[i],
                src,
                w,
                epilogue,
                dst,
                reinterpret_cast<int64_t*>(workspace),
                reinterpret_cast<T*>(workspace + map.bias),
                reinterpret_cast<T*>(workspace + map.panels)};
    pack(exec, calls[i]);
    workspace += map.end;
    scratch = max_of(scratch, map.scratch);
    items = max_of(items, plans[i].items());
    work += max_of(p.macs() / kLanes<T>, p.n * p.positions() * p.groups * p.dst_c);
  }
  parallel_for(exec, items * count, work, [&](int64_t item, int thread) {
    const DirectCall<T>& call = calls[item % count];
    if (item / count < call.plan.items())
      run_item(call, item / count, reinterpret_cast<T*>(workspace + thread * scratch));
  });
}

}  // namespace
}  // namespace convgrad::cpu
