// Cross-entropy of float32 logits with a class per row and few classes, as in segmentation: a row
// is a lane of its vectors.
#pragma once
#include "loss_target.h"
#include "row_tile.h"
#include "vmath.h"
#include "wide.h"

namespace convgrad::cpu {
namespace {

inline bool has_short_rows(const Target<float>& target) {
  return target.sparse() && !target.s.log_probs && target.s.c <= kShortRow;
}

constexpr int kRows = kLanes<float>;

// The classes of up to kRows rows, as lanes.
struct Classes {
  Vec<int32_t> y, counts;  // the class; whether the row counts: it is inside and not ignored
  Vec<float> weight;       // 0 where it does not count

  // *bad_row: the first row outside, if there was none before.
  Classes(const Target<float>& target, int64_t row, int64_t rows, int64_t* bad_row)
      : y{}, counts{}, weight{} {
    const CrossEntropyShape& s = target.s;
    int32_t code[kRows] = {};
    int32_t inside[kRows] = {};
    int32_t outside = 0;
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t at = target.classes[row + r];
      const bool ignored = at == s.ignore_index;
      const bool fits = static_cast<uint64_t>(at) < static_cast<uint64_t>(s.c);
      code[r] = static_cast<int32_t>(at);
      inside[r] = fits & !ignored ? -1 : 0;
      outside |= !fits & !ignored;
    }
    y = load(code);
    counts = load(inside);
    weight = counts ? broadcast(1.0f) : Vec<float>{};
    if (target.weight)
      for (int64_t r = 0; r < rows; ++r) weight[r] = inside[r] ? target.weight[code[r]] : 0.0f;
    for (int64_t r = 0; outside && *bad_row < 0 && r < rows; ++r)
      if (!inside[r] && target.classes[row + r] != s.ignore_index) *bad_row = row + r;
  }
};

// (rows, 2) <-> two vectors of rows.
inline void store_stats(int64_t rows, Vec<float> top, Vec<float> sum, float* stats) {
  RowTile<float> tile;
  store(tile, top);
  store(tile + kRows, sum);
  untile_rows(rows, 2, tile, stats);
}

inline void forward_short_rows(const Target<float>& target, int64_t begin, int64_t end,
                               const float* x, float* loss, float* stats, Partial* out) {
  const CrossEntropyShape& s = target.s;
  Doubles<float> loss_sum{}, weight_sum{};
  out->bad_row = -1;
  RowTile<float> tile;
  for (int64_t row = begin; row < end; row += kRows) {
    const int64_t rows = min_of(kRows, end - row);
    const Classes classes(target, row, rows, &out->bad_row);
    tile_rows(rows, s.c, x + row * s.c, tile);
    Vec<float> top = load(tile), sum{}, chosen{};
    for (int64_t i = 1; i < s.c; ++i) {
      const Vec<float> v = load(tile + i * kRows);
      top = v > top ? v : top;
    }
    for (int64_t i = 0; i < s.c; ++i) {
      const Vec<float> v = load(tile + i * kRows) - top;
      sum += vexp(v);
      chosen = classes.y == static_cast<int32_t>(i) ? v : chosen;
    }
    const Vec<float> value = classes.counts ? classes.weight * (vlog(sum) - chosen) : Vec<float>{};
    store_stats(rows, top, sum, stats + 2 * row);
    loss_sum += to_doubles<float>(value);
    weight_sum += to_doubles<float>(classes.weight);
    if (s.reduction == Reduction::kNone) store_first(loss + row, value, rows);
  }
  out->loss = sum_lanes<float>(loss_sum);
  out->weight = sum_lanes<float>(weight_sum);
}

// scale: the gradient of each row's loss (rows), or of all of them, one value.
inline void backward_short_rows(const Target<float>& target, int64_t begin, int64_t end,
                                const float* x, const float* stats, const float* scale, float* dx) {
  const CrossEntropyShape& s = target.s;
  const bool none = s.reduction == Reduction::kNone;
  RowTile<float> tile, pair;
  for (int64_t row = begin; row < end; row += kRows) {
    const int64_t rows = min_of(kRows, end - row);
    int64_t bad_row = 0;  // known to the forward pass
    const Classes classes(target, row, rows, &bad_row);
    tile_rows(rows, s.c, x + row * s.c, tile);
    tile_rows(rows, 2, stats + 2 * row, pair);
    const Vec<float> top = load(pair), sum = load(pair + kRows);
    const Vec<float> total =
        classes.weight * (none ? load_first(scale + row, rows) : broadcast(*scale));
    const Vec<float> each = total / sum;
    for (int64_t i = 0; i < s.c; ++i) {
      const Vec<float> p = each * vexp(load(tile + i * kRows) - top);
      const Vec<float> slope = classes.y == static_cast<int32_t>(i) ? p - total : p;
      store(tile + i * kRows, classes.counts ? slope : Vec<float>{});
    }
    untile_rows(rows, s.c, tile, dx + row * s.c);
  }
}

}  // namespace
}  // namespace convgrad::cpu
