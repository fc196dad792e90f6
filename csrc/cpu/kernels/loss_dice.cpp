// Soft Dice loss: softmax over classes, or a sigmoid per element.
#include <cmath>

#include "parallel.h"
#include "vec.h"
#include "vmath.h"

namespace convgrad::cpu {
namespace {

// Pixels of one work item, by shape alone.
int64_t pixels_per_item(int64_t c) { return max_of(1, min_of(4096, (1 << 14) / c)); }

struct Blocks {
  int64_t pixels, per_sample, count;
  explicit Blocks(const DiceShape& s)
      : pixels(pixels_per_item(s.c)),
        per_sample(max_of(1, ceil_div(s.pixels, pixels))),
        count(s.n * per_sample) {}
};
constexpr int kSums = 3;  // per channel: of p t, p, t

// Per work item the sums and the first bad pixel (a double holds it exactly below 2^53).
int64_t item_doubles(const DiceShape& s) { return kSums * s.c + 1; }
int64_t dice_workspace(const DiceShape& s, int) {
  return Blocks(s).count * item_doubles(s) * int64_t{sizeof(double)};
}

// f over n elements by vectors; the lanes beyond the end see zeros.
template <class T, class Fn>
void map(int64_t n, const T* in, T* out, const Fn& f) {
  int64_t i = 0;
  for (; i + kLanes<T> <= n; i += kLanes<T>) store(out + i, Vec<T>(f(load(in + i))));
  if (i < n) store_first(out + i, Vec<T>(f(load_first(in + i, n - i))), n - i);
}

template <class T>
void softmax_pixels(int64_t begin, int64_t end, int64_t c, const T* x, T* p) {
  for (int64_t i = begin; i < end; ++i) {
    T m = x[i * c];
    for (int64_t k = 1; k < c; ++k) m = x[i * c + k] > m ? x[i * c + k] : m;
    for (int64_t k = 0; k < c; ++k) p[i * c + k] = x[i * c + k] - m;
  }
  map((end - begin) * c, p + begin * c, p + begin * c, [](Vec<T> v) { return vexp(v); });
  for (int64_t i = begin; i < end; ++i) {
    T sum = 0;
    for (int64_t k = 0; k < c; ++k) sum += p[i * c + k];
    for (int64_t k = 0; k < c; ++k) p[i * c + k] /= sum;
  }
}

// The sums over pixels [begin, end); returns the first pixel of a bad class, or -1.
template <class T>
int64_t sum_pixels(int64_t begin, int64_t end, int64_t c, const int64_t* classes, const T* mask,
                   const T* p, double* sums) {
  int64_t bad = -1;
  for (int64_t i = begin; i < end; ++i) {
    for (int64_t k = 0; k < c; ++k) {
      const double q = double(p[i * c + k]);
      sums[c + k] += q;
      if (mask) {
        sums[k] += q * double(mask[i * c + k]);
        sums[2 * c + k] += double(mask[i * c + k]);
      }
    }
    if (!classes) continue;
    const int64_t y = classes[i];
    if (y >= 0 && y < c) {
      sums[y] += double(p[i * c + y]);
      sums[2 * c + y] += 1;
    } else if (bad < 0) {
      bad = i;
    }
  }
  return bad;
}

// 1 - Dice of one sample and channel, and its slopes in p, both divided by n c.
template <class T>
double dice_channel(const DiceShape& s, const double* total, int64_t k, T* dp) {
  const double top = 2 * total[k] + s.smooth;
  const double bottom = total[s.c + k] + total[2 * s.c + k] + s.smooth;
  const double share = 1 / double(s.n * s.c);
  dp[0] = T(share * top / (bottom * bottom));
  dp[1] = T(-share * 2 / bottom);
  return share * (1 - top / bottom);
}

template <class T>
void dice_forward(const Exec& exec, const DiceShape& s, const T* x, const int64_t* classes,
                  const T* mask, T* loss, T* p, T* dp, int64_t* bad_row) {
  const Blocks blocks(s);
  const int64_t stride = item_doubles(s);
  double* parts = static_cast<double*>(exec.workspace);
  parallel_for(exec, blocks.count, 4 * s.n * s.pixels * s.c, [&](int64_t item, int) {
    const int64_t sample = item / blocks.per_sample;
    const int64_t first = item % blocks.per_sample * blocks.pixels;
    const int64_t begin = sample * s.pixels + first;
    const int64_t end = sample * s.pixels + min_of(first + blocks.pixels, s.pixels);
    double* sums = parts + item * stride;
    for (int64_t i = 0; i < stride; ++i) sums[i] = 0;
    if (classes)
      softmax_pixels(begin, end, s.c, x, p);
    else
      map((end - begin) * s.c, x + begin * s.c, p + begin * s.c,
          [](Vec<T> v) { return vsigmoid(v); });
    sums[kSums * s.c] = double(sum_pixels(begin, end, s.c, classes, mask, p, sums));
  });
  double value = 0;
  *bad_row = -1;
  for (int64_t sample = 0; sample < s.n; ++sample) {
    double* total = parts + sample * blocks.per_sample * stride;
    for (int64_t block = 0; block < blocks.per_sample; ++block) {
      const double* part = total + block * stride;
      if (*bad_row < 0) *bad_row = int64_t(part[kSums * s.c]);
      for (int64_t i = 0; block > 0 && i < kSums * s.c; ++i) total[i] += part[i];
    }
    for (int64_t k = 0; k < s.c; ++k)
      value += dice_channel(s, total, k, dp + (sample * s.c + k) * 2);
  }
  *loss = s.n * s.c == 0 ? T(0) / T(0) : T(value);
}

template <class T>
void backward_pixel(int64_t c, const int64_t* y, const T* mask, const T* p, const T* dp, T up,
                    T* dx) {
  T mean = 0;  // of dp under p
  for (int64_t k = 0; k < c; ++k) {
    const T t = mask ? mask[k] : T(k == *y);
    dx[k] = up * (dp[2 * k] + dp[2 * k + 1] * t);
    mean += dx[k] * p[k];
  }
  for (int64_t k = 0; k < c; ++k) dx[k] = p[k] * (mask ? dx[k] * (1 - p[k]) : dx[k] - mean);
}

template <class T>
void dice_backward(const Exec& exec, const DiceShape& s, const int64_t* classes, const T* mask,
                   const T* p, const T* dp, const T* dy, T* dx) {
  const Blocks blocks(s);
  parallel_for(exec, blocks.count, 2 * s.n * s.pixels * s.c, [&](int64_t item, int) {
    const int64_t sample = item / blocks.per_sample;
    const int64_t first = item % blocks.per_sample * blocks.pixels;
    for (int64_t i = first; i < min_of(first + blocks.pixels, s.pixels); ++i) {
      const int64_t pixel = sample * s.pixels + i, at = pixel * s.c;
      backward_pixel(s.c, classes ? classes + pixel : nullptr, mask ? mask + at : nullptr, p + at,
                     dp + sample * s.c * 2, *dy, dx + at);
    }
  });
}

template <class T>
void add(Ops<T>& table) {
  table.dice_workspace = dice_workspace;
  table.dice_forward = dice_forward<T>;
  table.dice_backward = dice_backward<T>;
}

}  // namespace

namespace CONVGRAD_ISA {
void add_loss_dice(Ops<float>& table) { add(table); }
void add_loss_dice(Ops<double>& table) { add(table); }
}  // namespace CONVGRAD_ISA
}  // namespace convgrad::cpu
