// Moving data: layout conversion, sums of equal layouts.
#include "parallel.h"
#include "vec.h"

namespace convgrad::cpu {
namespace {

// The innermost two axes of a strided copy.
template <class T>
void copy_plane(int64_t rows, int64_t cols, const T* src, int64_t src_row, int64_t src_col, T* dst,
                int64_t dst_row, int64_t dst_col) {
  constexpr int64_t kTile = 16;  // rows and columns of a transposition that share cache lines
  for (int64_t r0 = 0; r0 < rows; r0 += kTile)
    for (int64_t c0 = 0; c0 < cols; c0 += kTile)
      for (int64_t r = r0; r < min_of(r0 + kTile, rows); ++r)
        for (int64_t c = c0; c < min_of(c0 + kTile, cols); ++c)
          dst[r * dst_row + c * dst_col] = src[r * src_row + c * src_col];
}

template <class T>
void copy(const Exec& exec, const StridedShape& s, const T* src, T* dst) {
  int64_t outer = 1, size[2] = {1, 1}, from[2] = {0, 0}, to[2] = {0, 0};
  const int inner = s.rank < 2 ? s.rank : 2;
  for (int i = 0; i < s.rank - inner; ++i) outer *= s.size[i];
  for (int i = 0; i < inner; ++i) {
    size[2 - inner + i] = s.size[s.rank - inner + i];
    from[2 - inner + i] = s.src_stride[s.rank - inner + i];
    to[2 - inner + i] = s.dst_stride[s.rank - inner + i];
  }
  parallel_for(exec, outer, outer * size[0] * size[1], [&](int64_t item, int) {
    int64_t src_at = 0, dst_at = 0;
    for (int i = s.rank - inner - 1; i >= 0; --i) {
      src_at += item % s.size[i] * s.src_stride[i];
      dst_at += item % s.size[i] * s.dst_stride[i];
      item /= s.size[i];
    }
    copy_plane(size[0], size[1], src + src_at, from[0], from[1], dst + dst_at, to[0], to[1]);
  });
}

template <class T>
void add(const Exec& exec, int64_t n, const T* a, const T* b, T* out) {
  parallel_ranges(exec, n, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) out[i] = a[i] + b[i];
  });
}

template <class T>
void add_all(Ops<T>& table) {
  table.copy = copy<T>;
  table.add = add<T>;
}

}  // namespace

namespace CONVGRAD_ISA {
void add_move(Ops<float>& table) { add_all(table); }
void add_move(Ops<double>& table) { add_all(table); }
}  // namespace CONVGRAD_ISA
}  // namespace convgrad::cpu
