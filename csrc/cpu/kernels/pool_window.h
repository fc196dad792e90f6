// Which inputs a window covers and which windows cover an input: what all pooling kernels share.
#pragma once
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "lanes.h"
#include "parallel.h"
#include "vec.h"

namespace convgrad::cpu {
namespace {

// A window on one axis: its tap 0 lies at input coordinate `first`, taps [lo, hi) inside the input.
struct Span {
  int64_t first, lo, hi;
};
inline Span window(const PoolShape& s, int axis, int64_t o) {
  if (s.adaptive) {
    const int64_t first = o * s.in[axis] / s.out[axis];
    return {first, 0, ceil_div((o + 1) * s.in[axis], s.out[axis]) - first};
  }
  const int64_t first = o * s.stride[axis] - s.pad[axis], dil = s.dil[axis];
  const int64_t lo = first >= 0 ? 0 : ceil_div(-first, dil);
  const int64_t room = s.in[axis] - first;
  const int64_t hi = (s.ker[axis] - 1) * dil < room ? s.ker[axis] : ceil_div(room, dil);
  return {first, lo, hi};
}

// The windows [lo, hi) that reach over input coordinate i; where dil > 1 a tap may step over it.
struct Cover {
  int64_t lo, hi;
};
inline Cover cover(const PoolShape& s, int axis, int64_t i) {
  if (s.adaptive)
    return {i * s.out[axis] / s.in[axis], ceil_div((i + 1) * s.out[axis], s.in[axis])};
  const int64_t at = i + s.pad[axis], reach = (s.ker[axis] - 1) * s.dil[axis];
  const int64_t stride = s.stride[axis];
  const int64_t lo = at <= reach ? 0 : stride == 1 ? at - reach : ceil_div(at - reach, stride);
  const int64_t hi = (stride == 1 ? at : at / stride) + 1;
  return {lo, min_of(hi, s.out[axis])};
}

// The tap of window o that lies on input coordinate i of its reach; -1 if none does.
inline int64_t tap_on(const PoolShape& s, int axis, int64_t o, int64_t i) {
  if (s.adaptive) return i - o * s.in[axis] / s.out[axis];
  const int64_t from = i + s.pad[axis] - o * s.stride[axis], dil = s.dil[axis];
  if (dil == 1) return from;
  return from % dil == 0 ? from / dil : -1;
}

// What an average is divided by, one axis's share of it.
inline int64_t axis_count(const PoolShape& s, int axis, const Span& w) {
  if (s.adaptive || !s.count_pad) return w.hi - w.lo;
  return min_of(s.ker[axis], s.in[axis] + s.pad[axis] - w.first);
}
template <class T>
T divisor(const PoolShape& s, int64_t d_count, int64_t h_count, int64_t w_count) {
  return static_cast<T>(s.divisor ? s.divisor : d_count * h_count * w_count);
}

// At most this many pixels at a time are combined into one output pixel; a longer list comes in
// several chunks, which also bounds the length of a sum.
constexpr int kList = 64;
template <class V>
struct List {
  int count = 0;
  int64_t offset[kList];  // in elements
  V value[kList];
};

// fn(list, first) for the taps of a window in chunks, as offsets from its (perhaps outer) tap 0 and
// tap numbers.
template <class V, class Fn>
inline void list_taps(const PoolShape& s, const Span& d, const Span& h, const Span& w,
                      List<V>& list, const Fn& fn) {
  bool first = true;
  list.count = 0;
  for (int64_t kd = d.lo; kd < d.hi; ++kd)
    for (int64_t kh = h.lo; kh < h.hi; ++kh) {
      const int64_t row = (kd * s.dil[0] * s.in[1] + kh * s.dil[1]) * s.in[2];
      const int64_t tap = (kd * s.ker[1] + kh) * s.ker[2];
      for (int64_t kw = w.lo; kw < w.hi; ++kw) {
        if (list.count == kList) {
          fn(list, first);
          first = false;
          list.count = 0;
        }
        list.offset[list.count] = (row + kw * s.dil[2]) * s.c;
        list.value[list.count++] = static_cast<V>(tap + kw);
      }
    }
  fn(list, first);
}

// fn(n, d, h, w0, w1, at) over the pixels [begin, end) of an (n, size) grid, by runs [w0, w1)
// within a row; `at` is the first pixel's number.
template <class Fn>
inline void for_rows(int64_t begin, int64_t end, const int64_t size[3], const Fn& fn) {
  while (begin < end) {
    const int64_t w = begin % size[2], row = begin / size[2];
    const int64_t stop = min_of(size[2], w + end - begin);
    fn(row / size[1] / size[0], row / size[1] % size[0], row % size[1], w, stop, begin);
    begin += stop - w;
  }
}

// One work item: some pixels and some channels of each.
struct Piece {
  int64_t begin, end, c0, c;
};
// body(piece) over pixels x c; an element costs `cost`. Few pixels are split by channels too.
template <class Body>
inline void parallel_pixels(const Exec& exec, int64_t pixels, int64_t c, int64_t cost,
                            const Body& body) {
  const int64_t c_piece = pixels < 64 && c > 32 ? 32 : max_of(c, 1);
  const int64_t c_pieces = ceil_div(c, c_piece);
  const int64_t piece = max_of(kGrain / 2 / max_of(c_piece * cost, 1), 1);
  parallel_for(exec, ceil_div(pixels, piece) * c_pieces, pixels * c * cost, [&](int64_t item, int) {
    const int64_t begin = item / c_pieces * piece, c0 = item % c_pieces * c_piece;
    body(Piece{begin, min_of(begin + piece, pixels), c0, min_of(c_piece, c - c0)});
  });
}

// ---- W integers I of 4 or 8 bytes from and to W taps, which lie in memory as bytes or int32 ----
// gcc widens bytes one by one, and before AVX-512 narrows to them so; byte shuffles do it in a few
// instructions.

template <int... J>
struct Sequence {};
template <int N, int... J>
struct MakeSequence : MakeSequence<N - 1, N - 1, J...> {};
template <int... J>
struct MakeSequence<0, J...> {
  using type = Sequence<J...>;
};
template <int Bytes>
struct WordOf;
template <>
struct WordOf<2> {
  using type = uint16_t;
};
template <>
struct WordOf<4> {
  using type = uint32_t;
};
template <>
struct WordOf<8> {
  using type = uint64_t;
};

// J counts the bytes of the result: each lane's lowest is one of the W bytes, repeated over the
// vector so that no byte leaves its 16-byte lane; the others are zero.
template <class I, int W, int... J>
inline Lanes<I, W> widen_bytes(const uint8_t* p, Sequence<J...>) {
  constexpr int kBytes = W * sizeof(I), kItem = sizeof(I);
  using Bytes = Lanes<uint8_t, kBytes>;
  using Word = typename WordOf<W>::type;
  Word word;
  __builtin_memcpy(&word, p, W);
  const auto all = (Bytes)(Lanes<Word, kItem>{} + word);
  const Bytes zero{};
  return (Lanes<I, W>)__builtin_shufflevector(
      all, zero, (J % kItem == 0 ? J / 16 * 16 + J / kItem % W : kBytes)...);
}
template <class I, int W, int... J>
inline void narrow_to_bytes(Lanes<I, W> v, uint8_t* p, Sequence<J...>) {
  const auto bytes = (Lanes<uint8_t, W * sizeof(I)>)v;
  const Lanes<uint8_t, W> low =
      __builtin_shufflevector(bytes, bytes, (J * static_cast<int>(sizeof(I)))...);
  __builtin_memcpy(p, &low, W);
}

template <class I, int W>
inline Lanes<I, W> get_taps(const int32_t* p) {
  if constexpr (W == 1) {
    return *p;
  } else {
    return __builtin_convertvector((get<int32_t, W>(p)), Lanes<I, W>);
  }
}
template <class I, int W>
inline void put_taps(int32_t* p, Lanes<I, W> v) {
  if constexpr (W == 1) {
    *p = static_cast<int32_t>(v);
  } else {
    put<int32_t, W>(p, __builtin_convertvector(v, Lanes<int32_t, W>));
  }
}
template <class I, int W>
inline Lanes<I, W> get_taps(const uint8_t* p) {
  if constexpr (W == 1) {
    return *p;
#if defined(__AVX512F__)
  } else if constexpr (W == 16) {
    return (Lanes<I, W>)_mm512_maskz_cvtepu8_epi32(
        0xffff, _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#endif
  } else if constexpr (W == 16) {
    return __builtin_shufflevector((get_taps<I, 8>(p)), (get_taps<I, 8>(p + 8)), 0, 1, 2, 3, 4, 5,
                                   6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  } else {
    return widen_bytes<I, W>(p, typename MakeSequence<W * sizeof(I)>::type{});
  }
}
template <class I, int W>
inline void put_taps(uint8_t* p, Lanes<I, W> v) {
  if constexpr (W == 1) {
    *p = static_cast<uint8_t>(v);
#if defined(__AVX512F__)
  } else if constexpr (W == 16) {
    const auto bytes = __builtin_convertvector(v, Lanes<uint8_t, W>);
    __builtin_memcpy(p, &bytes, W);
#endif
  } else if constexpr (W == 16) {
    put_taps<I, 8>(p, __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7));
    put_taps<I, 8>(p + 8, __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15));
  } else {
    narrow_to_bytes<I, W>(v, p, typename MakeSequence<W>::type{});
  }
}

// Windows that never share an input: the backward pass may go by windows.
inline bool windows_are_apart(const PoolShape& s) {
  bool apart = !s.adaptive && s.n * s.out_pixels() >= 64;
  for (int axis = 0; axis < 3; ++axis)
    apart = apart && s.dil[axis] == 1 && s.stride[axis] >= s.ker[axis];
  return apart;
}

template <class T>
inline void zero_run(T* p, int64_t n) {
  for (int64_t i = 0; i < n; ++i) p[i] = 0;
}

// For windows apart: window o owns the inputs from its start to the next window's, the first and
// the last window what remains. Zeros whatever of it no tap reaches, then calls fn(list, dx of tap
// 0, output pixel) for each window, per chunk of taps.
template <class T, class Fn>
inline void backward_by_windows(const Exec& exec, const PoolShape& s, T* dx, const Fn& fn) {
  const auto owned = [&](int axis, int64_t o) -> Cover {
    return {o == 0 ? 0 : o * s.stride[axis] - s.pad[axis],
            o == s.out[axis] - 1 ? s.in[axis] : (o + 1) * s.stride[axis] - s.pad[axis]};
  };
  const int64_t pixels = s.n * s.out_pixels();
  const int64_t piece = max_of(kGrain / max_of(s.c * s.taps(), 1), 1);
  parallel_for(exec, ceil_div(pixels, piece), s.x_size(), [&](int64_t item, int) {
    List<int32_t> list;
    for_rows(item * piece, min_of((item + 1) * piece, pixels), s.out,
             [&](int64_t n, int64_t od, int64_t oh, int64_t w0, int64_t w1, int64_t at) {
               const Span d = window(s, 0, od), h = window(s, 1, oh);
               const Cover own_d = owned(0, od), own_h = owned(1, oh);
               const int64_t from = owned(2, w0).lo, to = owned(2, w1 - 1).hi;
               T* image = dx + n * s.in_pixels() * s.c;
               for (int64_t id = own_d.lo; id < own_d.hi; ++id)
                 for (int64_t ih = own_h.lo; ih < own_h.hi; ++ih) {
                   T* row = image + (id * s.in[1] + ih) * s.in[2] * s.c;
                   const bool inside = id - d.first < d.hi && ih - h.first < h.hi;
                   if (!inside) {
                     zero_run(row + from * s.c, (to - from) * s.c);
                   } else if (s.stride[2] > s.ker[2] || w1 == s.out[2]) {
                     for (int64_t ow = s.stride[2] > s.ker[2] ? w0 : w1 - 1; ow < w1; ++ow) {
                       const Span w = window(s, 2, ow);
                       const int64_t end = w.first + w.hi;
                       zero_run(row + end * s.c, (owned(2, ow).hi - end) * s.c);
                     }
                   }
                 }
               Span last{0, 0, 0};
               for (int64_t ow = w0; ow < w1; ++ow) {
                 const Span w = window(s, 2, ow);
                 const int64_t base = ((d.first * s.in[1] + h.first) * s.in[2] + w.first) * s.c;
                 const auto chunk = [&](const List<int32_t>& taps, bool) {
                   fn(taps, image, base, at + ow - w0);
                 };
                 if (w.lo == last.lo && w.hi == last.hi && s.taps() <= kList) {
                   chunk(list, true);
                 } else {
                   list_taps(s, d, h, w, list, chunk);
                 }
                 last = w;
               }
             });
  });
}

// For any windows: calls fn(list, first, base, input pixel, piece) for each input pixel with the
// output pixels whose windows have a tap on it, in chunks, as offsets from `base`;
// value(od, oh, ow, kd, kh, kw) makes a list's value. No window: fn gets an empty list.
// Pixels one stride apart see the same list one output further on: it is made anew only near the
// edges, if `same` says that values depend on taps alone.
template <class V, class Value, class Fn>
inline void backward_by_inputs(const Exec& exec, const PoolShape& s, bool same, const Value& value,
                               const Fn& fn) {
  int64_t cost = 1;
  for (int axis = 0; axis < 3; ++axis) cost *= ceil_div(s.ker[axis], s.stride[axis]);
  same = same && !s.adaptive;
  parallel_pixels(exec, s.n * s.in_pixels(), s.c, cost, [&](const Piece& p) {
    List<V> list;
    for_rows(p.begin, p.end, s.in,
             [&](int64_t n, int64_t id, int64_t ih, int64_t w0, int64_t w1, int64_t at) {
               const Cover d = cover(s, 0, id), h = cover(s, 1, ih);
               const int64_t phases = same ? min_of(s.stride[2], w1 - w0) : 1;
               for (int64_t phase = 0; phase < phases; ++phase) {
                 Cover last{0, -1};
                 bool whole = false;  // the list holds all of the pixel before
                 for (int64_t iw = w0 + phase; iw < w1; iw += same ? s.stride[2] : 1) {
                   const Cover w = cover(s, 2, iw);
                   const int64_t base = (n * s.out_pixels() + w.lo) * s.c;
                   const int64_t pixel = at + iw - w0;
                   const int64_t lead = iw - w.lo * s.stride[2];
                   if (whole && w.hi - w.lo == last.hi && lead == last.lo) {
                     fn(list, true, base, pixel, p);
                     continue;
                   }
                   last = {lead, w.hi - w.lo};
                   bool first = true;
                   list.count = 0;
                   for (int64_t od = d.lo; od < d.hi; ++od)
                     for (int64_t oh = h.lo; oh < h.hi; ++oh) {
                       const int64_t kd = tap_on(s, 0, od, id), kh = tap_on(s, 1, oh, ih);
                       if (kd < 0 || kh < 0) continue;
                       for (int64_t ow = w.lo; ow < w.hi; ++ow) {
                         const int64_t kw = tap_on(s, 2, ow, iw);
                         if (kw < 0) continue;
                         if (list.count == kList) {
                           fn(list, first, base, pixel, p);
                           first = false;
                           list.count = 0;
                         }
                         list.offset[list.count] =
                             ((od * s.out[1] + oh) * s.out[2] + ow - w.lo) * s.c;
                         list.value[list.count++] = value(od, oh, ow, kd, kh, kw);
                       }
                     }
                   fn(list, first, base, pixel, p);
                   whole = same && first;
                 }
               }
             });
  });
}

// Calls fn(list, first, base, output pixel, piece) for each window, per chunk of taps; base is
// where tap 0 lies, perhaps outside.
template <class Fn>
inline void forward_by_windows(const Exec& exec, const PoolShape& s, const Fn& fn) {
  parallel_pixels(exec, s.n * s.out_pixels(), s.c, s.taps(), [&](const Piece& p) {
    List<int32_t> list;
    for_rows(p.begin, p.end, s.out,
             [&](int64_t n, int64_t od, int64_t oh, int64_t w0, int64_t w1, int64_t at) {
               const Span d = window(s, 0, od), h = window(s, 1, oh);
               const int64_t image = n * s.in_pixels() * s.c;
               Span last{0, 0, 0};
               for (int64_t ow = w0; ow < w1; ++ow) {
                 const Span w = window(s, 2, ow);
                 const int64_t base =
                     image + ((d.first * s.in[1] + h.first) * s.in[2] + w.first) * s.c;
                 const auto chunk = [&](const List<int32_t>& taps, bool first) {
                   fn(taps, first, base, at + ow - w0, p);
                 };
                 if (w.lo == last.lo && w.hi == last.hi && s.taps() <= kList) {
                   chunk(list, true);
                 } else {
                   list_taps(s, d, h, w, list, chunk);
                 }
                 last = w;
               }
             });
  });
}

}  // namespace
}  // namespace convgrad::cpu
