// Convolution: backward_weight. dy (n, out, k), x (n, in, c) -> dw (k, taps, c/g), db (k).
#include "conv_backward_weight.h"

#include "column_sum.h"
#include "conv_backward_weight_kernels.h"
#include "conv_backward_weight_winograd.h"
#include "gemm.h"

namespace convgrad::cpu {
namespace {

// One strip of one unit. dy is read in place, or, where the plan says so or the last vector of k
// would reach beyond its end, from a copy with room for whole vectors.
template <class T>
struct Strip {
  const ConvShape& s;
  const DwPlan& p;
  Box box;
  int64_t group, first_k, used;  // output channels of the unit: first_k .. first_k + used
  const T* x;                    // the whole input
  const T* dy;                   // at the box's first pixel and first_k
  int64_t dy_step[4];

  int64_t vectors() const { return ceil_div(used, kLanes<T>); }
  // One beyond the box's last pixel's `width` values.
  const T* read_end() const {
    const T* last = dy + p.width;
    for (int i = 0; i < 4; ++i) last += (box.hi[i] - box.lo[i] - 1) * dy_step[i];
    return last;
  }
};

// The lanes beyond `used` get what follows in memory: they are summed, and never looked at.
template <class T>
void pack_strip(Strip<T>& strip, const T* dy_end, T* scratch) {
  constexpr int kHalf = kLanes<T> / 2;
  const Box& box = strip.box;
  const int64_t width = strip.p.width, columns = box.hi[3] - box.lo[3];
  T* to = scratch;
  for (int64_t n = 0; n < box.hi[0] - box.lo[0]; ++n)
    for (int64_t d = 0; d < box.hi[1] - box.lo[1]; ++d)
      for (int64_t h = 0; h < box.hi[2] - box.lo[2]; ++h) {
        const T* from =
            strip.dy + n * strip.dy_step[0] + d * strip.dy_step[1] + h * strip.dy_step[2];
        for (int64_t w = 0; w < columns; ++w, from += strip.dy_step[3], to += width)
          if (dy_end - from >= width)
            for (int64_t i = 0; i < width; i += kHalf)
              put<T, kHalf>(to + i, get<T, kHalf>(from + i));
          else
            for (int64_t i = 0; i < width; ++i) to[i] = i < strip.used ? from[i] : T(0);
      }
  strip.dy = scratch;
  strip.dy_step[3] = width;
  for (int i = 2; i >= 0; --i)
    strip.dy_step[i] = strip.dy_step[i + 1] * (box.hi[i + 1] - box.lo[i + 1]);
}

template <class T>
Strip<T> make_strip(const ConvShape& s, const DwPlan& p, int64_t index, int64_t group,
                    int64_t block, const T* x, const T* dy, T* scratch) {
  Strip<T> strip = {s,
                    p,
                    strip_box(s, p, index),
                    group,
                    group * p.out_c + block * p.width,
                    min_of(p.width, p.out_c - block * p.width),
                    x,
                    dy,
                    {}};
  strip.dy_step[3] = s.out_c;
  for (int i = 2; i >= 0; --i) strip.dy_step[i] = strip.dy_step[i + 1] * s.out[i];
  strip.dy += strip.first_k;
  for (int i = 0; i < 4; ++i) strip.dy += strip.box.lo[i] * strip.dy_step[i];
  const T* dy_end = dy + s.y_size();
  if (p.kernel != ConvAlgorithm::kDepthwise && (p.pack || strip.read_end() > dy_end))
    pack_strip(strip, dy_end, scratch);
  return strip;
}

// Part of a strip for some taps: the box, and for the taps' first one where x and dy start.
template <class T>
struct Part {
  Walk walk;
  const T *x, *dy;
};
template <class T>
Part<T> make_part(const Strip<T>& strip, const Box& box, const int64_t tap[3]) {
  const ConvShape& s = strip.s;
  Part<T> part;
  part.dy = strip.dy;
  part.x = strip.x + strip.group * strip.p.in_c;
  int64_t step = s.in_c;
  for (int i = 3; i >= 0; --i) {
    part.walk.count[i] = box.hi[i] - box.lo[i];
    part.walk.b[i] = strip.dy_step[i];
    part.dy += (box.lo[i] - strip.box.lo[i]) * strip.dy_step[i];
    if (i == 0) {
      part.walk.a[0] = step;
      part.x += box.lo[0] * step;
    } else {
      const int axis = i - 1;
      part.walk.a[i] = step * s.stride[axis];
      part.x += (box.lo[i] * s.stride[axis] - s.pad[axis] + tap[axis] * s.dil[axis]) * step;
      step *= s.in[axis];
    }
  }
  return part;
}

// The box with axis d or h (0 or 1) cut to where tap k lies inside; false if nothing is left.
inline bool clip_box(const ConvShape& s, int axis, int64_t k, Box& box) {
  clip_outputs(s, axis, k, &box.lo[axis + 1], &box.hi[axis + 1]);
  return box.lo[axis + 1] < box.hi[axis + 1];
}

// ---- tile ----

template <class T>
void run_tiles(const Strip<T>& strip, int64_t rows, const Part<T>& part, T* sums) {
  constexpr int L = kLanes<T>;
  const int64_t width = strip.p.width;
  if constexpr (kPairs<T>)
    if (width < L)
      return in_pairs(part.walk, part.x, part.dy,
                      [&](auto p, const Walk& walk, const T* x, const T* dy) {
                        DwTiles1<T, L / 2, p.value>::run(rows, walk, x, dy, sums, width);
                      });
  const auto tiles = strip.vectors() == 1 ? DwTiles1<T, L, 1>::run : DwTiles2<T>::run;
  tiles(rows, part.walk, part.x, part.dy, sums, width);
}

template <class T>
void tile_unit(const Strip<T>& strip, int64_t kd, int64_t kh, T* sums) {
  const ConvShape& s = strip.s;
  const DwPlan& p = strip.p;
  Box box = strip.box;
  if (!clip_box(s, 0, kd, box) || !clip_box(s, 1, kh, box)) return;
  const auto columns = [&](int64_t lo, int64_t hi, int64_t kw, int64_t taps) {
    box.lo[3] = lo;
    box.hi[3] = hi;
    const int64_t tap[3] = {kd, kh, kw};
    const Part<T> part = make_part(strip, box, tap);
    run_tiles(strip, taps * p.in_c, part, sums + kw * p.in_c * p.width);
  };
  if (s.groups == 1 && s.dil[2] == 1) {  // neighbouring taps are one run of taps * c values of x
    for_segments(s, 2, strip.box.lo[3], strip.box.hi[3],
                 [&](int64_t lo, int64_t hi, TapRange taps) {
                   columns(lo, hi, taps.lo, taps.hi - taps.lo);
                 });
    return;
  }
  for (int64_t kw = 0; kw < s.ker[2]; ++kw) {
    int64_t lo = strip.box.lo[3], hi = strip.box.hi[3];
    clip_outputs(s, 2, kw, &lo, &hi);
    if (lo < hi) columns(lo, hi, kw, 1);
  }
}

// ---- slide ----

template <class T>
SlideRow slide_row(const Strip<T>& strip) {
  const ConvShape& s = strip.s;
  const int64_t c = strip.p.in_c, width = strip.p.width;
  SlideRow row;
  row.begin = strip.box.lo[3];
  row.end = strip.box.hi[3];
  row.pad = s.pad[2];
  row.width = s.in[2];
  row.x_pixel = s.in_c;
  row.x_tap_row = s.dil[1] * s.in[2] * s.in_c;
  row.dy_pixel = strip.dy_step[3];
  row.out_row = s.ker[2] * c * width;
  row.out_tap = c * width;
  row.out_c = width;
  return row;
}

// x of make_part lies at input column lo * 1 - pad; the sliding kernel counts from column 0.
template <class T>
const T* first_column(const Strip<T>& strip, const T* x) {
  return x + (strip.s.pad[2] - strip.box.lo[3]) * strip.s.in_c;
}

// Channels in even blocks.
template <class Slides, class T>
void slide_channels(const Strip<T>& strip, const Walk& walk, const T* x, const T* dy, T* sums) {
  const SlideRow row = slide_row(strip);
  const int64_t blocks = ceil_div(strip.p.in_c, Slides::kMost);
  for (int64_t i = 0; i < blocks; ++i) {
    const int64_t c = strip.p.in_c * i / blocks, end = strip.p.in_c * (i + 1) / blocks;
    Slides::kByChannels[end - c - 1](walk, row, first_column(strip, x) + c, dy,
                                     sums + c * strip.p.width);
  }
}

// One channel: `rows` rows of taps.
template <class Slides, class T>
void slide_rows(const Strip<T>& strip, int64_t rows, const Walk& walk, const T* x, const T* dy,
                T* sums) {
  const SlideRow row = slide_row(strip);
  const int64_t blocks = ceil_div(rows, Slides::kMost);
  for (int64_t i = 0; i < blocks; ++i) {
    const int64_t r = rows * i / blocks, end = rows * (i + 1) / blocks;
    Slides::kByRows[end - r - 1](walk, row, first_column(strip, x) + r * row.x_tap_row, dy,
                                 sums + r * row.out_row);
  }
}

template <class T, int W, int P>
void run_slides(const Strip<T>& strip, int64_t rows, const Walk& walk, const T* x, const T* dy,
                T* sums) {
  const bool three = strip.s.ker[2] == 3;
  if (strip.p.in_c == 1)
    (three ? slide_rows<DwSlides3<T, W, P>, T>
           : slide_rows<DwSlides5<T, W, P>, T>)(strip, rows, walk, x, dy, sums);
  else
    (three ? slide_channels<DwSlides3<T, W, P>, T>
           : slide_channels<DwSlides5<T, W, P>, T>)(strip, walk, x, dy, sums);
}

// Rows of taps kh .. kh + rows for the rows of `box`, all of them inside.
template <class T>
void slide_box(const Strip<T>& strip, const Box& box, int64_t kd, int64_t kh, int64_t rows,
               T* sums) {
  constexpr int L = kLanes<T>;
  const int64_t tap[3] = {kd, kh, 0};
  const Part<T> part = make_part(strip, box, tap);
  if constexpr (kPairs<T>)
    if (strip.p.width < L)
      return in_pairs(part.walk, part.x, part.dy,
                      [&](auto p, const Walk& walk, const T* x, const T* dy) {
                        run_slides<T, L / 2, p.value>(strip, rows, walk, x, dy, sums);
                      });
  run_slides<T, L, 1>(strip, rows, part.walk, part.x, part.dy, sums);
}

template <class T>
void slide_unit(const Strip<T>& strip, int64_t tap_set, T* sums) {
  const ConvShape& s = strip.s;
  Box box = strip.box;
  if (strip.p.in_c > 1) {
    const int64_t kd = tap_set / s.ker[1], kh = tap_set % s.ker[1];
    if (clip_box(s, 0, kd, box) && clip_box(s, 1, kh, box)) slide_box(strip, box, kd, kh, 1, sums);
    return;
  }
  if (!clip_box(s, 0, tap_set, box)) return;
  for_segments(s, 1, strip.box.lo[2], strip.box.hi[2], [&](int64_t lo, int64_t hi, TapRange taps) {
    box.lo[2] = lo;
    box.hi[2] = hi;
    slide_box(strip, box, tap_set, taps.lo, taps.hi - taps.lo,
              sums + taps.lo * s.ker[2] * strip.p.width);
  });
}

// ---- depthwise: the channels of x are those of dy ----

template <class T, class V>
void depthwise_taps(const Part<T>& part, int64_t taps, int64_t x_tap, int64_t c, T* sums,
                    int64_t pitch) {
  constexpr decltype(&dw_depthwise<T, V, 1>) kDepthwise[4] = {
      dw_depthwise<T, V, 1>, dw_depthwise<T, V, 2>, dw_depthwise<T, V, 3>, dw_depthwise<T, V, 4>};
  for (int64_t t = 0; t < taps; t += 4)
    kDepthwise[min_of(4, taps - t) - 1](part.walk, x_tap, part.x + c + t * x_tap, part.dy + c,
                                        sums + t * pitch + c, pitch);
}

template <class T>
void depthwise_unit(const Strip<T>& strip, int64_t kd, int64_t kh, T* sums) {
  const ConvShape& s = strip.s;
  Box box = strip.box;
  if (!clip_box(s, 0, kd, box) || !clip_box(s, 1, kh, box)) return;
  for_segments(s, 2, strip.box.lo[3], strip.box.hi[3], [&](int64_t lo, int64_t hi, TapRange taps) {
    box.lo[3] = lo;
    box.hi[3] = hi;
    const int64_t tap[3] = {kd, kh, taps.lo}, x_tap = s.dil[2] * s.in_c;
    Part<T> part = make_part(strip, box, tap);
    part.x += strip.first_k;
    T* to = sums + taps.lo * strip.p.width;
    if (strip.used == kLanes<T>)
      return depthwise_taps<T, Vec<T>>(part, taps.hi - taps.lo, x_tap, 0, to, strip.p.width);
    for (int64_t c = 0; c < strip.used; ++c)
      depthwise_taps<T, T>(part, taps.hi - taps.lo, x_tap, c, to, strip.p.width);
  });
}

// ---- units, chunks and their sum ----

template <class T>
void strip_unit(const Strip<T>& strip, int64_t tap_set, T* sums) {
  const int64_t kd = tap_set / strip.s.ker[1], kh = tap_set % strip.s.ker[1];
  if (strip.p.kernel == ConvAlgorithm::kTile)
    tile_unit(strip, kd, kh, sums);
  else if (strip.p.kernel == ConvAlgorithm::kDepthwise)
    depthwise_unit(strip, kd, kh, sums);
  else if constexpr (sizeof(T) == 4)  // double has the generic kernels alone
    slide_unit(strip, tap_set, sums);
}

template <class T>
void strip_bias(const Strip<T>& strip, T* sums) {
  const int64_t tap[3] = {0, 0, 0};
  const Part<T> part = make_part(strip, strip.box, tap);
  constexpr int kHalf = kLanes<T> / 2;
  const bool whole = strip.p.kernel != ConvAlgorithm::kDepthwise || strip.used == kLanes<T>;
  if (strip.p.width == kHalf)
    dw_bias<T, Lanes<T, kHalf>>(part.walk, part.dy, sums);
  else if (whole)
    for (int64_t v = 0; v < strip.vectors(); ++v)
      dw_bias<T, Vec<T>>(part.walk, part.dy + v * kLanes<T>, sums + v * kLanes<T>);
  else
    for (int64_t c = 0; c < strip.used; ++c) dw_bias<T, T>(part.walk, part.dy + c, sums + c);
}

// Units [begin, end) of one chunk. `sums` is the chunk's: the units' matrices, then the biases.
template <class T>
void backward_weight_item(const ConvShape& s, const DwPlan& p, int64_t chunk, int64_t begin,
                          int64_t end, const T* x, const T* dy, bool with_bias, T* sums,
                          T* scratch) {
  T* bias = sums + p.units() * p.unit_size();
  for (int64_t i = begin * p.unit_size(); i < end * p.unit_size(); ++i) sums[i] = 0;
  for (int64_t unit = begin; unit < end; ++unit)
    if (unit % p.tap_sets == 0)
      for (int64_t i = 0; i < p.width; ++i) bias[unit / p.tap_sets * p.width + i] = 0;
  const int64_t first = chunk * p.strips_per_chunk;
  const int64_t last = min_of(first + p.strips_per_chunk, p.strips());
  for (int64_t index = first; index < last; ++index)
    for (int64_t unit = begin; unit < end;) {
      const int64_t column = unit / p.tap_sets;  // (group, block)
      const Strip<T> strip =
          make_strip(s, p, index, column / p.blocks, column % p.blocks, x, dy, scratch);
      if (with_bias && unit % p.tap_sets == 0) strip_bias(strip, bias + column * p.width);
      for (; unit < end && unit / p.tap_sets == column; ++unit)
        strip_unit(strip, unit % p.tap_sets, sums + unit * p.unit_size());
    }
}

// dw = the chunks' sums in order, transposed: unit matrices are (row, k), dw is (k, row).
template <class T>
void add_chunks(const DwPlan& p, int64_t unit, const T* sums, T* dw) {
  constexpr int L = kLanes<T>;
  constexpr int64_t kRows = 16;  // so that dw is written in runs
  const int64_t column = unit / p.tap_sets, first = column % p.blocks * p.width;
  const int64_t used = min_of(p.width, p.out_c - first), k_pitch = p.tap_sets * p.rows;
  T* out = dw + (column / p.blocks * p.out_c + first) * k_pitch + unit % p.tap_sets * p.rows;
  for (int64_t r0 = 0; r0 < p.rows; r0 += kRows)
    for (int64_t k = 0; k < used; k += L) {
      T tile[kRows][L];
      const int64_t rows = min_of(kRows, p.rows - r0), ks = min_of(L, used - k);
      for (int64_t r = 0; r < rows; ++r) {
        const T* at = sums + unit * p.unit_size() + (r0 + r) * p.width + k;
        Vec<T> sum = load(at);
        for (int64_t chunk = 1; chunk < p.chunks; ++chunk) sum += load(at + chunk * p.partial);
        store(tile[r], sum);
      }
      for (int64_t i = 0; i < ks; ++i)
        for (int64_t r = 0; r < rows; ++r) out[(k + i) * k_pitch + r0 + r] = tile[r][i];
    }
}

template <class T>
void add_bias_chunks(const DwPlan& p, const T* sums, T* db) {
  for (int64_t k = 0; k < p.groups * p.out_c; ++k) {
    const int64_t column = k / p.out_c * p.blocks + k % p.out_c / p.width;
    const T* at = sums + p.units() * p.unit_size() + column * p.width + k % p.out_c % p.width;
    T sum = at[0];
    for (int64_t chunk = 1; chunk < p.chunks; ++chunk) sum += at[chunk * p.partial];
    db[k] = sum;
  }
}

// ---- a kernel that covers the whole input: dw = dy' x, a matrix product ----

inline bool is_product(const ConvShape& s) {
  if (s.groups != 1 || s.taps() == 1) return false;
  bool whole = true;
  for (int i = 0; i < 3; ++i)
    whole = whole && s.ker[i] == s.in[i] && s.out[i] == 1 && s.pad[i] == 0 &&
            (s.dil[i] == 1 || s.in[i] == 1);
  return whole;
}
inline GemmShape product_shape(const ConvShape& s) {
  return {s.out_c, s.taps() * s.in_c, s.n, true, false};
}

// ---- the ops ----

template <class T>
ConvAlgorithm conv_backward_weight_algorithm(const ConvShape& s) {
  constexpr bool kFast = sizeof(T) == sizeof(float);  // double has the generic kernels alone
  const bool slide = kFast && can_slide_weight(s);
  const bool winograd = kFast && !s.exact && can_winograd(forward_pass(s));
  switch (s.algorithm) {
    case ConvAlgorithm::kTile:
      return s.algorithm;
    case ConvAlgorithm::kSlide:
      if (slide) return s.algorithm;
      break;
    case ConvAlgorithm::kDepthwise:
      if (is_depthwise(s)) return s.algorithm;
      break;
    case ConvAlgorithm::kWinograd:
      if (winograd) return s.algorithm;
      break;
    case ConvAlgorithm::kProduct:
      if (is_product(s)) return s.algorithm;
      break;
    case ConvAlgorithm::kFold:
    case ConvAlgorithm::kGeneric:
    case ConvAlgorithm::kAuto:
      break;
  }
  if (is_product(s)) return ConvAlgorithm::kProduct;
  if (is_depthwise(s)) return ConvAlgorithm::kDepthwise;
  if (winograd && is_winograd_weight_faster<T>(s)) return ConvAlgorithm::kWinograd;
  return slide && is_slide_weight_faster(s) ? ConvAlgorithm::kSlide : ConvAlgorithm::kTile;
}

// dw and db from the chunks' sums.
template <class T>
void finish_chunks(const Exec& exec, const DwPlan& p, const T* sums, T* dw, T* db) {
  parallel_for(exec, p.units(), p.chunks * p.partial,
               [&](int64_t unit, int) { add_chunks(p, unit, sums, dw); });
  if (db) add_bias_chunks(p, sums, db);
}

template <class T>
int64_t conv_backward_weight_workspace(const ConvShape& s, int threads) {
  const ConvAlgorithm algorithm = conv_backward_weight_algorithm<T>(s);
  if (algorithm == ConvAlgorithm::kWinograd)
    return winograd_backward_weight_workspace<T>(plan_winograd_backward_weight<T>(s), threads);
  if (algorithm == ConvAlgorithm::kProduct)
    return max_of(packed_gemm_workspace<T>(product_shape(s), threads),
                  column_sum_workspace<T>(s.n, s.out_c, threads));
  const DwPlan p = plan_backward_weight<T>(s, algorithm);
  return (p.chunks * p.partial + threads * p.scratch) * static_cast<int64_t>(sizeof(T));
}

template <class T>
void conv_backward_weight(const Exec& exec, const ConvShape& s, const T* dy, const T* x, T* dw,
                          T* db) {
  const ConvAlgorithm algorithm = conv_backward_weight_algorithm<T>(s);
  if (algorithm == ConvAlgorithm::kWinograd) {
    if constexpr (sizeof(T) == sizeof(float)) {
      const WinogradDwPlan p = plan_winograd_backward_weight<T>(s);
      winograd_backward_weight_sums(exec, s, p, dy, x, db != nullptr);
      finish_chunks(exec, p.sums, static_cast<const T*>(exec.workspace), dw, db);
    }
    return;
  }
  if (algorithm == ConvAlgorithm::kProduct) {
    packed_gemm(exec, product_shape(s), dy, x, Epilogue<T>{}, dw);
    if (db) column_sum(exec, s.n, s.out_c, dy, db);
    return;
  }
  const DwPlan p = plan_backward_weight<T>(s, algorithm);
  T* sums = static_cast<T*>(exec.workspace);
  T* scratch = sums + p.chunks * p.partial;
  const int64_t per_chunk = ceil_div(p.units(), p.units_per_item);
  parallel_for(exec, p.chunks * per_chunk, s.macs(), [&](int64_t item, int thread) {
    const int64_t chunk = item / per_chunk, begin = item % per_chunk * p.units_per_item;
    backward_weight_item(s, p, chunk, begin, min_of(begin + p.units_per_item, p.units()), x, dy,
                         db != nullptr, sums + chunk * p.partial, scratch + thread * p.scratch);
  });
  finish_chunks(exec, p, sums, dw, db);
}

template <class T>
void add(Ops<T>& table) {
  table.conv_backward_weight_algorithm = conv_backward_weight_algorithm<T>;
  table.conv_backward_weight_workspace = conv_backward_weight_workspace<T>;
  table.conv_backward_weight = conv_backward_weight<T>;
}

}  // namespace

namespace CONVGRAD_ISA {
void add_conv_backward_weight(Ops<float>& table) { add(table); }
void add_conv_backward_weight(Ops<double>& table) { add(table); }
}  // namespace CONVGRAD_ISA
}  // namespace convgrad::cpu
