// Max pooling and unpooling. x (n, in, c), y (n, out, c); the winning tap of each window is kept as
// its number in the window, in 1 byte where the window allows.
#include "pool_halving.h"
#include "pool_window.h"

namespace convgrad::cpu {
namespace {

template <class T>
struct IndexOf {
  using type = int32_t;
};
template <>
struct IndexOf<double> {
  using type = int64_t;
};
template <class T>
using Index = typename IndexOf<T>::type;

// One block of channels over a chunk of taps: the first maximum wins, a NaN wins over everything
// before it. Tap = void keeps no taps.
template <class T, class Tap, int W>
inline void max_block(const List<int32_t>& list, bool first, const T* x, T* y, Tap* tap) {
  constexpr bool kKeep = !__is_same(Tap, void);
  using V = Lanes<T, W>;
  using I = Lanes<Index<T>, W>;
  V best;
  I at = I{} + static_cast<Index<T>>(list.value[0]);
  if (first) {
    best = get<T, W>(x + list.offset[0]);
  } else {
    best = get<T, W>(y);
    if constexpr (kKeep) at = get_taps<Index<T>, W>(tap);
  }
  for (int t = first; t < list.count; ++t) {
    const V v = get<T, W>(x + list.offset[t]);
    const auto take = (v > best) | (v != v);
    best = take ? v : best;
    if constexpr (kKeep) at = take ? I{} + static_cast<Index<T>>(list.value[t]) : at;
  }
  put<T, W>(y, best);
  if constexpr (kKeep) put_taps<Index<T>, W>(tap, at);
}

template <class T, class Tap>
void max_forward(const Exec& exec, const PoolShape& s, const T* x, T* y, Tap* tap) {
  forward_by_windows(
      exec, s,
      [&](const List<int32_t>& list, bool first, int64_t base, int64_t pixel, const Piece& p) {
        const int64_t to = pixel * s.c + p.c0;
        for_channels<T>(p.c, first, [&](auto w, int64_t c) {
          Tap* at = nullptr;
          if constexpr (!__is_same(Tap, void)) at = tap + to + c;
          max_block<T, Tap, w.value>(list, first, x + (base + p.c0 + c), y + to + c, at);
        });
      });
}

template <class T>
void max_pool_forward(const Exec& exec, const PoolShape& s, const T* x, T* y, void* tap) {
  if constexpr (__is_same(T, float))
    if (is_halving(s)) return halving_forward(exec, s, x, y, static_cast<uint8_t*>(tap));
  if (tap == nullptr) {
    max_forward(exec, s, x, y, tap);
  } else if (s.tap_bytes() == 1) {
    max_forward(exec, s, x, y, static_cast<uint8_t*>(tap));
  } else {
    max_forward(exec, s, x, y, static_cast<int32_t*>(tap));
  }
}

// The gradients of W outputs from `at` on, 0 where the mask is not positive.
template <class T, int W>
inline Lanes<T, W> masked(const T* dy, const T* mask, int64_t at) {
  const Lanes<T, W> g = get<T, W>(dy + at);
  if (mask == nullptr) return g;
  return get<T, W>(mask + at) <= T(0) ? Lanes<T, W>{} : g;
}

template <class T, class Tap>
void max_backward(const Exec& exec, const PoolShape& s, const T* dy, const Tap* tap, const T* mask,
                  T* dx) {
  if (windows_are_apart(s)) {
    backward_by_windows(
        exec, s, dx, [&](const List<int32_t>& list, T* image, int64_t base, int64_t pixel) {
          for_channels<T>(s.c, true, [&](auto w, int64_t c) {
            constexpr int W = w.value;
            const Lanes<T, W> g = masked<T, W>(dy, mask, pixel * s.c + c);
            const auto at = get_taps<Index<T>, W>(tap + pixel * s.c + c);
            for (int t = 0; t < list.count; ++t)
              put<T, W>(image + (base + list.offset[t] + c),
                        at == static_cast<Index<T>>(list.value[t]) ? g : Lanes<T, W>{});
          });
        });
    return;
  }
  backward_by_inputs<int32_t>(
      exec, s, true,
      [&](int64_t, int64_t, int64_t, int64_t kd, int64_t kh, int64_t kw) {
        return static_cast<int32_t>((kd * s.ker[1] + kh) * s.ker[2] + kw);
      },
      [&](const List<int32_t>& list, bool first, int64_t base, int64_t pixel, const Piece& p) {
        for_channels<T>(p.c, first, [&](auto w, int64_t c) {
          constexpr int W = w.value;
          T* to = dx + pixel * s.c + p.c0 + c;
          Lanes<T, W> sum{};
          if (!first) sum = get<T, W>(to);
          for (int t = 0; t < list.count; ++t) {
            const int64_t from = base + list.offset[t] + p.c0 + c;
            const auto at = get_taps<Index<T>, W>(tap + from);
            const Lanes<T, W> g = masked<T, W>(dy, mask, from);
            sum += at == static_cast<Index<T>>(list.value[t]) ? g : Lanes<T, W>{};
          }
          put<T, W>(to, sum);
        });
      });
}

template <class T>
void max_pool_backward(const Exec& exec, const PoolShape& s, const T* dy, const void* tap,
                       const T* mask, T* dx) {
  if constexpr (__is_same(T, float))
    if (is_halving(s) && s.y_size() > 0)
      return halving_backward(exec, s, dy, static_cast<const uint8_t*>(tap), mask, dx);
  if (s.tap_bytes() == 1) {
    max_backward(exec, s, dy, static_cast<const uint8_t*>(tap), mask, dx);
  } else {
    max_backward(exec, s, dy, static_cast<const int32_t*>(tap), mask, dx);
  }
}

template <class Tap>
void tap_index(const Exec& exec, const PoolShape& s, const Tap* tap, int64_t* index) {
  const auto in_plane = [&](int64_t t) {  // from tap 0
    const int64_t kd = t / (s.ker[1] * s.ker[2]), kh = t / s.ker[2] % s.ker[1], kw = t % s.ker[2];
    return (kd * s.dil[0] * s.in[1] + kh * s.dil[1]) * s.in[2] + kw * s.dil[2];
  };
  parallel_pixels(exec, s.n * s.out_pixels(), s.c, 4, [&](const Piece& p) {
    constexpr int64_t kTable = 256;
    int64_t table[kTable];
    for (int64_t t = 0; t < min_of(s.taps(), kTable); ++t) table[t] = in_plane(t);
    for_rows(p.begin, p.end, s.out,
             [&](int64_t, int64_t od, int64_t oh, int64_t w0, int64_t w1, int64_t at) {
               const int64_t d = window(s, 0, od).first, h = window(s, 1, oh).first;
               for (int64_t ow = w0; ow < w1; ++ow) {
                 const int64_t base = (d * s.in[1] + h) * s.in[2] + window(s, 2, ow).first;
                 const int64_t to = (at + ow - w0) * s.c + p.c0;
                 for (int64_t c = 0; c < p.c; ++c) {
                   const int64_t t = tap[to + c];
                   index[to + c] = base + (t < kTable ? table[t] : in_plane(t));
                 }
               }
             });
  });
}

template <class T>
void max_pool_index(const Exec& exec, const PoolShape& s, const void* tap, int64_t* index) {
  if (s.tap_bytes() == 1) {
    tap_index(exec, s, static_cast<const uint8_t*>(tap), index);
  } else {
    tap_index(exec, s, static_cast<const int32_t*>(tap), index);
  }
}

// ---- unpooling: x and index (n, in, c), y (n, out, c) ----

int64_t max_unpool_forward_workspace(int64_t, int64_t, int64_t, int) { return 0; }

template <class T>
void max_unpool_forward(const Exec& exec, int64_t n, int64_t in, int64_t out, int64_t c, const T* x,
                        const int64_t* index, T* y) {
  parallel_ranges(exec, n * out * c, kGrain,
                  [&](int64_t begin, int64_t end) { zero_run(y + begin, end - begin); });
  // Each item owns some channels of one image, so that the last of equal indices wins.
  constexpr int64_t kPiece = 64 / sizeof(T);
  const int64_t pieces = ceil_div(c, kPiece);
  parallel_for(exec, n * pieces, n * in * c, [&](int64_t item, int) {
    const int64_t image = item / pieces, c0 = item % pieces * kPiece, c1 = min_of(c0 + kPiece, c);
    for (int64_t pixel = image * in; pixel < (image + 1) * in; ++pixel)
      for (int64_t k = c0; k < c1; ++k)
        y[(image * out + index[pixel * c + k]) * c + k] = x[pixel * c + k];
  });
}

template <class T>
void max_unpool_backward(const Exec& exec, int64_t n, int64_t in, int64_t out, int64_t c,
                         const T* dy, const int64_t* index, T* dx) {
  parallel_pixels(exec, n * in, c, 1, [&](const Piece& p) {
    for (int64_t pixel = p.begin; pixel < p.end; ++pixel)
      for (int64_t k = p.c0; k < p.c0 + p.c; ++k)
        dx[pixel * c + k] = dy[(pixel / in * out + index[pixel * c + k]) * c + k];
  });
}

template <class T>
void add(Ops<T>& table) {
  table.max_pool_forward = max_pool_forward<T>;
  table.max_pool_backward = max_pool_backward<T>;
  table.max_pool_index = max_pool_index<T>;
  table.max_unpool_forward_workspace = max_unpool_forward_workspace;
  table.max_unpool_forward = max_unpool_forward<T>;
  table.max_unpool_backward = max_unpool_backward<T>;
}

}  // namespace

namespace CONVGRAD_ISA {
void add_pool(Ops<float>& table) { add(table); }
void add_pool(Ops<double>& table) { add(table); }
}  // namespace CONVGRAD_ISA
}  // namespace convgrad::cpu
