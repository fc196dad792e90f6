// Moving data: strided copies (layout conversion, cat, narrow), constant padding, rows
// by index and their adjoint.
#include "parallel.h"
#include "row_tile.h"
#include "strided.h"
#include "vec.h"

namespace convgrad::cpu {
namespace {

// ---- strided copy ----

template <class T>
inline void copy_run(int64_t n, const T* src, T* dst) {
  int64_t i = 0;
  for (; i + kLanes<T> <= n; i += kLanes<T>) store(dst + i, load(src + i));
  if (i < n) store_first(dst + i, load_first(src + i, n - i), n - i);
}

template <class T>
inline void fill_run(int64_t n, T value, T* dst) {
  const Vec<T> v = broadcast(value);
  int64_t i = 0;
  for (; i + kLanes<T> <= n; i += kLanes<T>) store(dst + i, v);
  if (i < n) store_first(dst + i, v, n - i);
}

// dst[i * dst_row + j] = src[i + j * src_col] for i, j < 4.
template <class T>
inline void transpose_4x4(const T* src, int64_t src_col, T* dst, int64_t dst_row) {
  typedef T Quad __attribute__((vector_size(4 * sizeof(T))));
  typedef T AnyQuad __attribute__((vector_size(4 * sizeof(T)), aligned(alignof(T)), __may_alias__));
  const auto at = [&](int j) -> Quad {
    return *reinterpret_cast<const AnyQuad*>(src + j * src_col);
  };
  const auto put = [&](int i, Quad v) { *reinterpret_cast<AnyQuad*>(dst + i * dst_row) = v; };
  const Quad a = at(0), b = at(1), c = at(2), d = at(3);
  const Quad ab_lo = __builtin_shufflevector(a, b, 0, 4, 1, 5);
  const Quad ab_hi = __builtin_shufflevector(a, b, 2, 6, 3, 7);
  const Quad cd_lo = __builtin_shufflevector(c, d, 0, 4, 1, 5);
  const Quad cd_hi = __builtin_shufflevector(c, d, 2, 6, 3, 7);
  put(0, __builtin_shufflevector(ab_lo, cd_lo, 0, 1, 4, 5));
  put(1, __builtin_shufflevector(ab_lo, cd_lo, 2, 3, 6, 7));
  put(2, __builtin_shufflevector(ab_hi, cd_hi, 0, 1, 4, 5));
  put(3, __builtin_shufflevector(ab_hi, cd_hi, 2, 3, 6, 7));
}

// dst[i * dst_row + j] = src[i + j * src_col] for i < rows, j < cols: a square of a vector's lanes
// or a part of one.
inline void transpose_square(int64_t rows, int64_t cols, const float* src, int64_t src_col,
                             float* dst, int64_t dst_row) {
  constexpr int kL = kLanes<float>;
  Vec<float> v[kL];
  if (rows == kL && cols == kL) {
#pragma GCC unroll 16
    for (int j = 0; j < kL; ++j) v[j] = load(src + j * src_col);
    transpose_from_lanes(v);
#pragma GCC unroll 16
    for (int i = 0; i < kL; ++i) store(dst + i * dst_row, v[i]);
    return;
  }
#pragma GCC unroll 16
  for (int j = 0; j < kL; ++j) v[j] = j < cols ? load_first(src + j * src_col, rows) : Vec<float>{};
  transpose_from_lanes(v);
#pragma GCC unroll 16
  for (int i = 0; i < kL; ++i)
    if (i < rows) store_first(dst + i * dst_row, v[i], cols);
}
// dst[r * dst_row + c] = src[r + c * src_col] for float32, along the longer axis first: memory is
// fetched ahead of long runs.
void transpose_squares(int64_t rows, int64_t cols, const float* src, int64_t src_col, float* dst,
                       int64_t dst_row) {
  constexpr int64_t kL = kLanes<float>;
  const bool down = rows > cols;
  for (int64_t i = 0; i < (down ? cols : rows); i += kL)
    for (int64_t j = 0; j < (down ? rows : cols); j += kL) {
      const int64_t r = down ? j : i, c = down ? i : j;
      transpose_square(min_of(rows - r, kL), min_of(cols - c, kL), src + r + c * src_col, src_col,
                       dst + r * dst_row + c, dst_row);
    }
}
// A few rows, which src holds side by side: src_col == rows.
void gather_rows(int64_t rows, int64_t cols, const float* src, float* dst, int64_t dst_row) {
  constexpr int kL = kLanes<float>;
  with_padding(rows, [&](auto padded) {
    Vec<float> v[padded.value];
    for (int64_t c = 0; c < cols; c += kL) {
      get_rows(rows, src + c * rows, (cols - c) * rows, v);
      const int64_t n = min_of(cols - c, kL);
#pragma GCC unroll 8
      for (int i = 0; i < padded.value; ++i)
        if (i < rows) store_first(dst + i * dst_row + c, v[i], n);
    }
  });
}
// A few columns, which dst holds side by side: dst_row == cols.
void scatter_columns(int64_t rows, int64_t cols, const float* src, int64_t src_col, float* dst) {
  constexpr int kL = kLanes<float>;
  with_padding(cols, [&](auto padded) {
    Vec<float> v[padded.value];
    for (int64_t r = 0; r < rows; r += kL) {
      const int64_t n = min_of(rows - r, kL);
#pragma GCC unroll 8
      for (int i = 0; i < padded.value; ++i)
        v[i] = i < cols ? load_first(src + i * src_col + r, n) : Vec<float>{};
      put_rows(cols, v, (rows - r) * cols, dst + r * cols);
    }
  });
}
void transpose_plane(int64_t rows, int64_t cols, const float* src, int64_t src_col, float* dst,
                     int64_t dst_row) {
  if (is_narrow(rows) && src_col == rows) return gather_rows(rows, cols, src, dst, dst_row);
  if (is_narrow(cols) && dst_row == cols) return scatter_columns(rows, cols, src, src_col, dst);
  transpose_squares(rows, cols, src, src_col, dst, dst_row);
}

// The same, by tiles whose rows and columns share cache lines.
template <class T>
void transpose_plane(int64_t rows, int64_t cols, const T* src, int64_t src_col, T* dst,
                     int64_t dst_row) {
  constexpr int64_t kTile = 64 / static_cast<int64_t>(sizeof(T));
  for (int64_t r0 = 0; r0 < rows; r0 += kTile)
    for (int64_t c0 = 0; c0 < cols; c0 += kTile) {
      const int64_t r1 = min_of(r0 + kTile, rows), c1 = min_of(c0 + kTile, cols);
      const int64_t r4 = r0 + (r1 - r0) / 4 * 4, c4 = c0 + (c1 - c0) / 4 * 4;
      for (int64_t c = c0; c < c4; c += 4)
        for (int64_t r = r0; r < r4; r += 4)
          transpose_4x4(src + r + c * src_col, src_col, dst + r * dst_row + c, dst_row);
      for (int64_t r = r0; r < r1; ++r)
        for (int64_t c = r < r4 ? c4 : c0; c < c1; ++c) dst[r * dst_row + c] = src[r + c * src_col];
    }
}

// A plane of rows x cols elements, the columns next to each other in dst where possible.
struct Plane {
  int64_t rows, cols, src_row, src_col, dst_row, dst_col;
};

template <class T>
void copy_plane(const Plane& p, const T* src, T* dst) {
  if (p.dst_col == 1 && p.src_col == 1 && p.cols <= kLanes<T>) {
    for (int64_t r = 0; r < p.rows; ++r)
      store_first(dst + r * p.dst_row, load_first(src + r * p.src_row, p.cols), p.cols);
  } else if (p.dst_col == 1 && p.src_col == 1) {
    for (int64_t r = 0; r < p.rows; ++r) copy_run(p.cols, src + r * p.src_row, dst + r * p.dst_row);
  } else if (p.dst_col == 1 && p.src_row == 1) {
    transpose_plane(p.rows, p.cols, src, p.src_col, dst, p.dst_row);
  } else {
    for (int64_t r = 0; r < p.rows; ++r)
      for (int64_t c = 0; c < p.cols; ++c)
        dst[r * p.dst_row + c * p.dst_col] = src[r * p.src_row + c * p.src_col];
  }
}

template <class T>
void copy(const Exec& exec, const StridedShape& given, const T* src, T* dst) {
  StridedShape s = simplified(given);
  Plane p{1, 1, 0, 1, 0, 1};
  if (s.rank > 0) {
    --s.rank;
    p.cols = s.size[s.rank];
    p.src_col = s.src_stride[s.rank];
    p.dst_col = s.dst_stride[s.rank];
  }
  if (s.rank > 0) {  // the rows: the axis along which src is densest
    int best = s.rank - 1;
    for (int i = 0; i < s.rank; ++i)
      if (magnitude(s.src_stride[i]) < magnitude(s.src_stride[best])) best = i;
    for (int i = best; i + 1 < s.rank; ++i) swap_axes(s, i, i + 1);
    --s.rank;
    p.rows = s.size[s.rank];
    p.src_row = s.src_stride[s.rank];
    p.dst_row = s.dst_stride[s.rank];
  }
  int64_t outer = 1;
  for (int i = 0; i < s.rank; ++i) outer *= s.size[i];
  const int64_t piece_cols = min_of(max_of(p.cols, 1), kGrain);
  const int64_t piece_rows = max_of(kGrain / piece_cols / 16 * 16, 16);
  const int64_t row_pieces = ceil_div(p.rows, piece_rows),
                col_pieces = ceil_div(p.cols, piece_cols);
  parallel_for(exec, outer * row_pieces * col_pieces, outer * p.rows * p.cols,
               [&](int64_t item, int) {
                 const int64_t c0 = item % col_pieces * piece_cols;
                 const int64_t r0 = item / col_pieces % row_pieces * piece_rows;
                 int64_t src_at = r0 * p.src_row + c0 * p.src_col;
                 int64_t dst_at = r0 * p.dst_row + c0 * p.dst_col;
                 item /= col_pieces * row_pieces;
                 for (int i = s.rank - 1; i >= 0; --i) {
                   src_at += item % s.size[i] * s.src_stride[i];
                   dst_at += item % s.size[i] * s.dst_stride[i];
                   item /= s.size[i];
                 }
                 Plane piece = p;
                 piece.rows = min_of(piece_rows, p.rows - r0);
                 piece.cols = min_of(piece_cols, p.cols - c0);
                 copy_plane(piece, src + src_at, dst + dst_at);
               });
}

// ---- matrices side by side ----

// body(begin, end, i, first, pitch) for each part of a few rows at a time, [begin, end): part i
// starts at column `first` of the wide matrix, whose rows are `pitch` long. All parts of these
// rows together, so that the wide matrix passes through the cache once.
template <class Body>
void for_parts(const Exec& exec, int64_t rows, int64_t count, const int64_t* cols,
               const Body& body) {
  int64_t pitch = 0;
  for (int64_t i = 0; i < count; ++i) pitch += cols[i];
  const int64_t piece = max_of(kGrain / 2 / max_of(pitch, 1), 1);
  parallel_for(exec, ceil_div(rows, piece), rows * pitch, [&](int64_t item, int) {
    const int64_t begin = item * piece, end = min_of(begin + piece, rows);
    for (int64_t i = 0, first = 0; i < count; first += cols[i++]) body(begin, end, i, first, pitch);
  });
}

template <class T>
void join_columns(const Exec& exec, int64_t rows, int64_t count, const int64_t* cols,
                  const T* const* parts, T* wide) {
  for_parts(exec, rows, count, cols,
            [&](int64_t begin, int64_t end, int64_t i, int64_t first, int64_t pitch) {
              copy_plane(Plane{end - begin, cols[i], cols[i], 1, pitch, 1},
                         parts[i] + begin * cols[i], wide + begin * pitch + first);
            });
}
template <class T>
void split_columns(const Exec& exec, int64_t rows, int64_t count, const int64_t* cols,
                   const T* wide, T* const* parts) {
  for_parts(exec, rows, count, cols,
            [&](int64_t begin, int64_t end, int64_t i, int64_t first, int64_t pitch) {
              copy_plane(Plane{end - begin, cols[i], pitch, 1, cols[i], 1},
                         wide + begin * pitch + first, parts[i] + begin * cols[i]);
            });
}

// ---- constant padding ----

template <class T>
void pad_constant(const Exec& exec, const PadShape& s, const T* x, T value, T* y) {
  const int last = s.rank - 1;
  int64_t rows = 1;
  for (int i = 0; i < last; ++i) rows *= s.out[i];
  const int64_t width = s.out[last];
  // Along the last axis: [0, begin) is padding, [begin, end) is x, [end, width) is padding.
  const int64_t begin = min_of(max_of(s.low[last], 0), width);
  const int64_t end = max_of(min_of(s.low[last] + s.in[last], width), begin);
  const int64_t piece = max_of(kGrain / max_of(width, 1), 1);
  parallel_for(exec, ceil_div(rows, piece), rows * width, [&](int64_t item, int) {
    for (int64_t row = item * piece; row < min_of((item + 1) * piece, rows); ++row) {
      int64_t rest = row, at = 0, pitch = s.in[last];
      bool inside = true;
      for (int i = last - 1; i >= 0; --i) {
        const int64_t from = rest % s.out[i] - s.low[i];
        inside = inside && from >= 0 && from < s.in[i];
        at += from * pitch;
        pitch *= s.in[i];
        rest /= s.out[i];
      }
      T* out = y + row * width;
      if (!inside) {
        fill_run(width, value, out);
        continue;
      }
      fill_run(begin, value, out);
      copy_run(end - begin, x + at + begin - s.low[last], out + begin);
      fill_run(width - end, value, out + end);
    }
  });
}

// ---- indices ----

inline int64_t find_outside(const Exec&, int64_t n, const int64_t* index, int64_t low,
                            int64_t high) {
  for (int64_t i = 0; i < n; ++i)
    if (index[i] < low || index[i] >= high) return i;
  return -1;
}

constexpr int64_t wrapped(int64_t index, int64_t rows) { return index < 0 ? index + rows : index; }

template <class T>
void index_rows(const Exec& exec, int64_t count, int64_t cols, const int64_t* index, int64_t rows,
                const T* x, T* out) {
  const int64_t piece_cols = min_of(max_of(cols, 1), kGrain);
  const int64_t piece_rows = max_of(kGrain / piece_cols, 1);
  const int64_t col_pieces = ceil_div(cols, piece_cols);
  parallel_for(exec, ceil_div(count, piece_rows) * col_pieces, count * cols,
               [&](int64_t item, int) {
                 const int64_t c0 = item % col_pieces * piece_cols;
                 const int64_t r0 = item / col_pieces * piece_rows;
                 for (int64_t r = r0; r < min_of(r0 + piece_rows, count); ++r)
                   copy_run(min_of(piece_cols, cols - c0), x + wrapped(index[r], rows) * cols + c0,
                            out + r * cols + c0);
               });
}

// Each item owns a block of out's rows and columns and adds into it in the order of the index, so
// the blocks may follow the number of threads: they do not change any sum.
template <class T>
void index_add(const Exec& exec, int64_t count, int64_t cols, const int64_t* index, const T* values,
               int64_t rows, T* out) {
  constexpr int64_t kPieceCols = 256;
  const int64_t col_pieces = ceil_div(cols, kPieceCols);
  const int64_t wanted = exec.threads > 1 && count * cols >= kSerialWork
                             ? max_of(exec.threads / max_of(col_pieces, 1), 1)
                             : 1;
  const int64_t piece_rows = max_of(ceil_div(rows, wanted), 1);
  parallel_for(exec, ceil_div(rows, piece_rows) * col_pieces, (count + rows) * cols,
               [&](int64_t item, int) {
                 const int64_t c0 = item % col_pieces * kPieceCols;
                 const int64_t n = min_of(kPieceCols, cols - c0);
                 const int64_t r0 = item / col_pieces * piece_rows;
                 const int64_t r1 = min_of(r0 + piece_rows, rows);
                 for (int64_t r = r0; r < r1; ++r) fill_run(n, T(0), out + r * cols + c0);
                 for (int64_t i = 0; i < count; ++i) {
                   const int64_t row = wrapped(index[i], rows);
                   if (row < r0 || row >= r1) continue;
                   T* to = out + row * cols + c0;
                   const T* from = values + i * cols + c0;
                   for (int64_t c = 0; c < n; ++c) to[c] += from[c];
                 }
               });
}

template <class From, class To>
void convert(const Exec& exec, int64_t n, const From* x, To* y) {
  parallel_ranges(exec, n, kGrain, [&](int64_t i, int64_t end) {
    for (; i < end; ++i) y[i] = To(x[i]);
  });
}

template <class T>
void add(Ops<T>& table) {
  table.copy = copy<T>;
  table.from_float = convert<float, T>;
  table.to_float = convert<T, float>;
  table.join_columns = join_columns<T>;
  table.split_columns = split_columns<T>;
  table.pad_constant = pad_constant<T>;
  table.find_outside = find_outside;
  table.index_rows = index_rows<T>;
  table.index_add = index_add<T>;
}

}  // namespace

namespace CONVGRAD_ISA {
void add_move(Ops<float>& table) { add(table); }
void add_move(Ops<double>& table) { add(table); }
}  // namespace CONVGRAD_ISA
}  // namespace convgrad::cpu
