// Max pooling of float32 by windows of two on the last axis and one or two on the others, side by
// side: what most nets do. The taps are known to the compiler, and pixels of few channels share a
// vector.
#pragma once
#include "pool_window.h"

namespace convgrad::cpu {
namespace {

inline bool is_halving(const PoolShape& s) {
  bool fits = !s.adaptive && s.ker[2] == 2 && s.c > 0;
  for (int axis = 0; axis < 3; ++axis)
    fits = fits && s.ker[axis] <= 2 && s.stride[axis] == s.ker[axis] && s.pad[axis] == 0 &&
           s.dil[axis] == 1 && s.out[axis] * s.ker[axis] <= s.in[axis];
  return fits;
}

constexpr int kFloats = kLanes<float>;
using Floats = Vec<float>;
using Ints = Vec<int32_t>;

// What the rows of one call share.
struct Halving {
  int64_t c;
  int64_t row[4]{};  // where the rows under a row of outputs begin, in elements after the first
  // Fewer channels than lanes: `pixels` outputs lie in one vector, their inputs in two. Else 0.
  int64_t pixels = 0;
  Ints tap[2]{};    // where the two taps of each output lane lie in the two vectors of inputs
  Ints input[2]{};  // where the lanes of these vectors lie in one vector of outputs per tap

  explicit Halving(const PoolShape& s) : c(s.c) {
    for (int64_t d = 0; d < s.ker[0]; ++d)
      for (int64_t h = 0; h < s.ker[1]; ++h)
        row[d * s.ker[1] + h] = (d * s.in[1] + h) * s.in[2] * c;
    if (c >= kFloats) return;
    pixels = kFloats / c;
    const int channels = static_cast<int>(c);
    for (int lane = 0; lane < kFloats / channels * channels; ++lane)
      for (int t = 0; t < 2; ++t) {
        const int in = (lane / channels * 2 + t) * channels + lane % channels;
        tap[t][lane] = in;
        input[in / kFloats][in % kFloats] = t * kFloats + lane;
      }
  }
};

// The three kinds of blocks read and write one vector of outputs, and the inputs under it in one
// row as a vector per tap. Many channels:
struct WideBlock {
  const Halving& h;

  static Floats get(const float* p) { return load(p); }
  static void put(float* p, Floats v) { store(p, v); }
  static Ints taps(const uint8_t* p) { return get_taps<int32_t, kFloats>(p); }
  static void put_taps_at(uint8_t* p, Ints v) { put_taps<int32_t, kFloats>(p, v); }
  void inputs(const float* p, Floats v[2]) const {
    v[0] = load(p);
    v[1] = load(p + h.c);
  }
  void put_inputs(float* p, const Floats v[2]) const {
    store(p, v[0]);
    store(p + h.c, v[1]);
  }
};
// Few channels. What it writes beyond its pixels belongs to the next block of the row.
struct FoldedBlock : WideBlock {
  void inputs(const float* p, Floats v[2]) const { split(load(p), load(p + kFloats), v); }
  void put_inputs(float* p, const Floats v[2]) const {
    store(p, __builtin_shuffle(v[0], v[1], h.input[0]));
    store(p + kFloats, __builtin_shuffle(v[0], v[1], h.input[1]));
  }
  void split(Floats a, Floats b, Floats v[2]) const {
    v[0] = __builtin_shuffle(a, b, h.tap[0]);
    v[1] = __builtin_shuffle(a, b, h.tap[1]);
  }
};
// The last blocks of a row: n elements of outputs.
struct LastBlock : FoldedBlock {
  int64_t n;
  int64_t low = min_of(2 * n, kFloats), high = 2 * n - low;  // inputs in the two vectors

  Floats get(const float* p) const { return load_first(p, n); }
  void put(float* p, Floats v) const { store_first(p, v, n); }
  Ints taps(const uint8_t* p) const {
    uint8_t bytes[kFloats] = {};
    __builtin_memcpy(bytes, p, static_cast<size_t>(n));
    return get_taps<int32_t, kFloats>(bytes);
  }
  void put_taps_at(uint8_t* p, Ints v) const {
    uint8_t bytes[kFloats];
    put_taps<int32_t, kFloats>(bytes, v);
    __builtin_memcpy(p, bytes, static_cast<size_t>(n));
  }
  void inputs(const float* p, Floats v[2]) const {
    split(load_first(p, low), load_first(p + low, high), v);
  }
  void put_inputs(float* p, const Floats v[2]) const {
    store_first(p, __builtin_shuffle(v[0], v[1], h.input[0]), low);
    store_first(p + low, __builtin_shuffle(v[0], v[1], h.input[1]), high);
  }
};

// fn(block, out, in) for the blocks of `width` pixels of a row of outputs: their first elements in
// it and in the row of inputs.
template <class Fn>
inline void for_blocks(const Halving& h, int64_t width, const Fn& fn) {
  const int64_t c = h.c;
  if (h.pixels == 0) {
    for (int64_t w = 0; w < width; ++w) {
      int64_t k = 0;
      for (; k + kFloats <= c; k += kFloats) fn(WideBlock{h}, w * c + k, 2 * w * c + k);
      if (k < c) fn(WideBlock{h}, w * c + c - kFloats, 2 * w * c + c - kFloats);
    }
    return;
  }
  const int64_t n = h.pixels * c, end = width * c;
  int64_t at = 0;
  for (; at + kFloats <= end; at += n) fn(FoldedBlock{{h}}, at, 2 * at);
  for (; at < end; at += n) fn(LastBlock{{{h}}, min_of(n, end - at)}, at, 2 * at);
}

// The largest so far and its tap: the first of equals, the last NaN.
struct Best {
  Floats value;
  Ints tap;

  void meet(Floats v, int t) {
    const auto take = (v > value) | (v != v);
    value = take ? v : value;
    tap = take ? Ints{} + t : tap;
  }
};

template <int kRows>
void forward_row(const Halving& h, int64_t width, const float* x, float* y, uint8_t* tap) {
  for_blocks(h, width, [&](const auto& block, int64_t out, int64_t in) {
    Floats v[2];
    block.inputs(x + in, v);
    Best best{v[0], Ints{}};
    best.meet(v[1], 1);
#pragma GCC unroll 4
    for (int r = 1; r < kRows; ++r) {
      block.inputs(x + h.row[r] + in, v);
      best.meet(v[0], 2 * r);
      best.meet(v[1], 2 * r + 1);
    }
    block.put(y + out, best.value);
    if (tap) block.put_taps_at(tap + out, best.tap);
  });
}

template <int kRows>
void backward_row(const Halving& h, int64_t width, const float* dy, const uint8_t* tap,
                  const float* mask, float* dx) {
  // Long rows one by one: memory takes one stream faster than several.
  const int together = width * h.c < 512 ? kRows : 1;
  for (int r0 = 0; r0 < kRows; r0 += together)
    for_blocks(h, width, [&](const auto& block, int64_t out, int64_t in) {
      Floats g = block.get(dy + out);
      if (mask) g = block.get(mask + out) <= 0.0f ? Floats{} : g;
      const Ints at = block.taps(tap + out);
      for (int r = r0; r < r0 + together; ++r) {
        const Floats v[2] = {at == 2 * r ? g : Floats{}, at == 2 * r + 1 ? g : Floats{}};
        block.put_inputs(dx + h.row[r] + in, v);
      }
    });
}

// fn(n, d, h, w0, w1, at) over pieces of the rows of outputs, as for_rows, in threads.
template <class Fn>
inline void for_halved_rows(const Exec& exec, const PoolShape& s, const Fn& fn) {
  const int64_t pixels = s.n * s.out_pixels(), piece = max_of(kGrain / (s.c * s.taps()), 1);
  parallel_for(exec, ceil_div(pixels, piece), s.x_size(), [&](int64_t item, int) {
    for_rows(item * piece, min_of((item + 1) * piece, pixels), s.out, fn);
  });
}

// The element of x (n, in, c) at which the window of an output begins.
inline int64_t window_start(const PoolShape& s, int64_t n, int64_t d, int64_t h, int64_t w) {
  return (((n * s.in[0] + d * s.ker[0]) * s.in[1] + h * s.ker[1]) * s.in[2] + 2 * w) * s.c;
}

void halving_forward(const Exec& exec, const PoolShape& s, const float* x, float* y, uint8_t* tap) {
  const Halving halving(s);
  const auto row = s.taps() == 2 ? forward_row<1> : s.taps() == 4 ? forward_row<2> : forward_row<4>;
  for_halved_rows(exec, s,
                  [&](int64_t n, int64_t d, int64_t h, int64_t w0, int64_t w1, int64_t at) {
                    row(halving, w1 - w0, x + window_start(s, n, d, h, w0), y + at * s.c,
                        tap ? tap + at * s.c : nullptr);
                  });
}

// Zeros the columns, rows and slices behind a row of windows that none covers.
inline void zero_rest(const PoolShape& s, int64_t n, int64_t d, int64_t h, float* dx) {
  const bool last_h = h == s.out[1] - 1, last_d = d == s.out[0] - 1;
  const int64_t rest = s.in[2] - 2 * s.out[2], line = s.in[2] * s.c;
  for (int64_t id = d * s.ker[0]; id < (last_d ? s.in[0] : (d + 1) * s.ker[0]); ++id)
    for (int64_t ih = h * s.ker[1]; ih < (last_h ? s.in[1] : (h + 1) * s.ker[1]); ++ih) {
      float* to = dx + ((n * s.in[0] + id) * s.in[1] + ih) * line;
      const bool covered = id < s.out[0] * s.ker[0] && ih < s.out[1] * s.ker[1];
      zero_run(covered ? to + line - rest * s.c : to, covered ? rest * s.c : line);
    }
}

void halving_backward(const Exec& exec, const PoolShape& s, const float* dy, const uint8_t* tap,
                      const float* mask, float* dx) {
  const Halving halving(s);
  const auto row = s.taps() == 2   ? backward_row<1>
                   : s.taps() == 4 ? backward_row<2>
                                   : backward_row<4>;
  const bool cropped =
      s.in[0] > s.out[0] * s.ker[0] || s.in[1] > s.out[1] * s.ker[1] || s.in[2] > s.out[2] * 2;
  for_halved_rows(exec, s,
                  [&](int64_t n, int64_t d, int64_t h, int64_t w0, int64_t w1, int64_t at) {
                    row(halving, w1 - w0, dy + at * s.c, tap + at * s.c,
                        mask ? mask + at * s.c : nullptr, dx + window_start(s, n, d, h, w0));
                    if (cropped && w1 == s.out[2]) zero_rest(s, n, d, h, dx);
                  });
}

}  // namespace
}  // namespace convgrad::cpu
