// backward_input of stride 1 into few channels. A vector of dx would hold C channels and idle
// lanes; but what one pixel of dy adds to a row of dx, taps x C values, lies side by side and fills
// vectors.
//
// For row (d, h) of dx: z[o, kw C + c] = sum over kd, kh and k of dy[o, k] w[k, kd, kh, kw, c], by
// the tile kernel, into the thread's scratch. Then dx[i, c] = sum over kw of z[i + pad - kw, kw C +
// c]. Rows of taps that see padding are left out, and columns never meet it.
#pragma once
#include "conv_direct.h"
#include "lanes.h"

namespace convgrad::cpu {
namespace {

constexpr int kFoldLanes = 8;               // channels folded at a time
constexpr int64_t kMaxFoldRow = 128 << 10;  // bytes of z: in the L2 cache
constexpr int64_t kLeastFoldTerms = 32;     // products per z, to make up for the fold

struct FoldPlan {
  int64_t lanes;           // of a pixel's values, in whole vectors: the pitch of z
  int64_t terms;           // kd x kh x k
  int64_t rows, row_sets;  // rows of dx per item, items per slice
  int64_t edge;            // elements of zeros at each end of z
  int64_t z, scratch;      // elements of z with them, and of one thread's scratch: z, a row of dx
};
template <class T>
FoldPlan plan_fold(const ConvShape& s) {
  FoldPlan p;
  p.lanes = ceil_div(s.ker[2] * s.in_c, kLanes<T>) * kLanes<T>;
  p.terms = s.ker[0] * s.ker[1] * s.out_c;
  p.rows = even_piece(s.in[1], s.n * s.in[0] * s.in[1] / kItems);
  p.row_sets = ceil_div(s.in[1], p.rows);
  // Whole vectors are folded: what they hold beyond their channels is overwritten or never read.
  p.edge = (s.ker[2] - 1) * p.lanes;
  p.z = 2 * p.edge + s.out[2] * p.lanes + kLanes<T>;
  p.scratch = ceil_div(p.z + s.in[2] * s.in_c + kFoldLanes, 16) * 16;
  return p;
}

template <class T>
bool can_fold(const ConvShape& s) {
  for (int i = 0; i < 3; ++i)
    if (s.stride[i] != 1) return false;
  return s.groups == 1 && s.dil[2] == 1 && s.ker[1] * s.out_c <= kTermBlock &&
         s.x_size() * s.y_size() > 0 &&
         plan_fold<T>(s).z * static_cast<int64_t>(sizeof(T)) <= kMaxFoldRow;
}
// By a fifth fewer vectors multiplied than by the direct kernels, which put two pixels in a vector
// where their channels fill half of it.
template <class T>
bool is_fold_faster(const ConvShape& s) {
  const FoldPlan p = plan_fold<T>(s);
  const int64_t halves = ceil_div(s.in_c, kLanes<T> / 2);
  const int64_t direct = s.in_pixels() * s.ker[2] * (halves <= 3 ? halves : halves + halves % 2);
  const int64_t fold = 2 * s.out_pixels() * (p.lanes / kLanes<T>);
  return p.terms >= kLeastFoldTerms && 5 * fold <= 4 * direct;
}

template <class T>
struct FoldCall {
  const ConvShape& s;
  FoldPlan plan;
  const T* dy;
  Epilogue<T> epilogue;
  T* dx;
  int64_t* offsets;          // per row of taps, from the first one's first element of dy
  T *bias, *zeros, *panels;  // of C channels, of a block's lanes; [block][kd][kh][k][lanes]

  int64_t block_lanes(int64_t block) const {
    return min_of(2 * kLanes<T>, plan.lanes - block * 2 * kLanes<T>);
  }
  const T* panel(int64_t block) const { return panels + block * 2 * kLanes<T> * plan.terms; }
};

template <class T>
struct FoldMap {
  int64_t bias, zeros, panels, scratch;  // offsets in the workspace, in bytes
  FoldMap(const ConvShape& s, const FoldPlan& p) {
    constexpr int64_t kSize = sizeof(T);
    bias = aligned(s.ker[1] * static_cast<int64_t>(sizeof(int64_t)));
    zeros = bias + aligned((s.in_c + kFoldLanes) * kSize);
    panels = zeros + aligned(2 * kLanes<T> * kSize);
    scratch = panels + aligned(p.lanes * p.terms * kSize);
  }
};
template <class T>
int64_t fold_workspace(const ConvShape& s, int threads) {
  const FoldPlan p = plan_fold<T>(s);
  return FoldMap<T>(s, p).scratch + threads * p.scratch * static_cast<int64_t>(sizeof(T));
}

template <class T>
void pack_fold(const Exec& exec, const FoldCall<T>& call, const T* w) {
  const ConvShape& s = call.s;
  const FoldPlan& p = call.plan;
  for (int64_t kh = 0; kh < s.ker[1]; ++kh) call.offsets[kh] = -kh * s.dil[1] * s.out[2] * s.out_c;
  for (int64_t c = 0; c < s.in_c + kFoldLanes; ++c)
    call.bias[c] = call.epilogue.bias && c < s.in_c ? call.epilogue.bias[c] : T(0);
  zero_run(2 * kLanes<T>, call.zeros);
  const int64_t taps = s.ker[0] * s.ker[1], row = s.ker[2] * s.in_c;
  parallel_for(exec, taps, p.lanes * p.terms, [&](int64_t tap, int) {
    for (int64_t first = 0, block = 0; first < row; first += 2 * kLanes<T>, ++block) {
      const int64_t width = call.block_lanes(block), used = min_of(width, row - first);
      T* to = const_cast<T*>(call.panel(block)) + tap * s.out_c * width;
      for (int64_t k = 0; k < s.out_c; ++k, to += width) {
        copy_run(w + (k * taps + tap) * row + first, used, to);
        zero_run(width - used, to + used);
      }
    }
  });
}

// z of row (d, h) of image n's dx. False if no window reaches it.
template <class T>
bool fold_products(const FoldCall<T>& call, int64_t n, int64_t d, int64_t h, T* z) {
  const ConvShape& s = call.s;
  // dy's row of tap kh is at - kh dil, within [0, out).
  const int64_t at = h + s.pad[1], below = at - s.out[1] + 1;
  const int64_t lo = below > 0 ? ceil_div(below, s.dil[1]) : 0;
  const int64_t hi = min_of(s.ker[1], at / s.dil[1] + 1);
  TileArgs<T> args{};
  args.offset = call.offsets;
  args.rows = hi - lo;
  args.run = args.x_pitch = s.out_c;
  args.y_pitch = call.plan.lanes;
  args.bias = call.zeros;
  args.last = kLanes<T>;
  args.first = true;
  if (lo >= hi) return false;
  for (int64_t kd = 0; kd < s.ker[0]; ++kd) {
    const int64_t slice = d + s.pad[0] - kd * s.dil[0];
    if (slice < 0 || slice >= s.out[0]) continue;
    const int64_t row = (n * s.out[0] + slice) * s.out[1] + at - lo * s.dil[1];
    for (int64_t first = 0, block = 0; first < call.plan.lanes; first += 2 * kLanes<T>, ++block) {
      const int64_t width = call.block_lanes(block);
      args.panel = call.panel(block) + (kd * s.ker[1] + lo) * s.out_c * width;
      run_row(width == kLanes<T> ? kTile<T, 1, 1> : kTile<T, 1, 2>, args, s.out[2],
              call.dy + row * s.out[2] * s.out_c, z + first);
    }
    args.first = false;
  }
  return !args.first;
}

// row (pixels, C) = bias + the sum of z over S taps; S = 0: over all there are. z: of dx's pixel 0
// and tap 0.
template <class T, int S>
void fold_row(const FoldCall<T>& call, const T* z, T* row) {
  using Channels = Lanes<T, kFoldLanes>;
  const int64_t c = call.s.in_c, lanes = call.plan.lanes;
  const int taps = S > 0 ? S : static_cast<int>(call.s.ker[2]);
  for (int64_t i = 0; i < call.s.in[2]; ++i, z += lanes, row += c)
    for (int64_t c0 = 0; c0 < c; c0 += kFoldLanes) {
      Channels sum = get<T, kFoldLanes>(call.bias + c0);
#pragma GCC unroll 5
      for (int kw = 0; kw < taps; ++kw) sum += get<T, kFoldLanes>(z + c0 - kw * (lanes - c));
      put<T, kFoldLanes>(row + c0, sum);
    }
}

// dx[at ..] = row, with ReLU and mask; n elements.
template <class T>
void finish_row(const Epilogue<T>& e, int64_t n, const T* row, int64_t at, T* dx) {
  for (int64_t i = 0; i < n; i += kLanes<T>) {
    const int64_t count = min_of(kLanes<T>, n - i);
    Vec<T> v = load_first(row + i, count);
    if (e.relu) v = v < T(0) ? Vec<T>{} : v;
    if (e.mask) v = where_positive<T>(load_first(e.mask + at + i, count), v);
    store_first(dx + at + i, v, count);
  }
}

template <class T>
void run_fold(const Exec& exec, const ConvShape& s, const T* dy, const T* w,
              const Epilogue<T>& epilogue, T* dx) {
  const FoldPlan p = plan_fold<T>(s);
  const FoldMap<T> map(s, p);
  char* workspace = static_cast<char*>(exec.workspace);
  const FoldCall<T> call = {s,
                            p,
                            dy,
                            epilogue,
                            dx,
                            reinterpret_cast<int64_t*>(workspace),
                            reinterpret_cast<T*>(workspace + map.bias),
                            reinterpret_cast<T*>(workspace + map.zeros),
                            reinterpret_cast<T*>(workspace + map.panels)};
  pack_fold(exec, call, w);
  const auto fold = s.ker[2] == 3   ? fold_row<T, 3>
                    : s.ker[2] == 5 ? fold_row<T, 5>
                                    : fold_row<T, 0>;
  const int64_t width = s.in[2] * s.in_c;
  parallel_for(exec, s.n * s.in[0] * p.row_sets, s.macs() / kLanes<T>,
               [&](int64_t item, int thread) {
                 T* scratch = reinterpret_cast<T*>(workspace + map.scratch) + thread * p.scratch;
                 T *z = scratch + p.edge, *row = scratch + p.z;
                 zero_run(p.z, scratch);
                 const int64_t slice = item / p.row_sets, first = item % p.row_sets * p.rows;
                 for (int64_t h = first; h < min_of(first + p.rows, s.in[1]); ++h) {
                   if (!fold_products(call, slice / s.in[0], slice % s.in[0], h, z))
                     zero_run(s.out[2] * p.lanes, z);
                   fold(call, z + s.pad[2] * p.lanes, row);
                   finish_row(epilogue, width, row, (slice * s.in[1] + h) * width, dx);
                 }
               });
}

}  // namespace
}  // namespace convgrad::cpu
