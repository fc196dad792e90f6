// Losses element by element, and the multi-class margin loss.
//
// Each kind is a struct of two functions of vectors: the loss, and its slopes in input a and target
// b. A clamp passes its gradient on where it is just reached, as PyTorch's does.
#include <cmath>

#include "parallel.h"
#include "vec.h"
#include "vmath.h"
#include "wide.h"

namespace convgrad::cpu {
namespace {

template <class V>
struct Slopes {
  V a, b;
};

// One vector of arguments. `p` is the loss's parameter, `pos` pos_weight - 1.
template <class V>
struct Point {
  V a, b, p, pos;
};

template <class V>
V positive(V x) {
  return x < 0 ? V{} : x;
}
// 1, -1, or x itself where it is 0 or NaN.
template <class V>
V sign_of(V x) {
  const V one = V{} + 1;
  return x > 0 ? one : (x < 0 ? -one : x);
}
template <class V>
V softplus(V x) {  // log(1 + exp(x))
  return vlog1p(vexp(-vabs(x))) + positive(x);
}

struct Squared {
  template <class V>
  static V value(const Point<V>& x) {
    return (x.a - x.b) * (x.a - x.b);
  }
  template <class V>
  static Slopes<V> slopes(const Point<V>& x) {
    return {2 * (x.a - x.b), -2 * (x.a - x.b)};
  }
};

struct Absolute {
  template <class V>
  static V value(const Point<V>& x) {
    return vabs(x.a - x.b);
  }
  template <class V>
  static Slopes<V> slopes(const Point<V>& x) {
    return {sign_of(x.a - x.b), -sign_of(x.a - x.b)};
  }
};

struct SmoothL1 {
  template <class V>
  static V value(const Point<V>& x) {
    const V d = vabs(x.a - x.b);
    return d < x.p ? d * d / (2 * x.p) : d - x.p / 2;
  }
  template <class V>
  static Slopes<V> slopes(const Point<V>& x) {
    const V d = x.a - x.b;
    const V s = vabs(d) < x.p ? d / x.p : sign_of(d);
    return {s, -s};
  }
};

struct Huber {
  template <class V>
  static V value(const Point<V>& x) {
    const V d = vabs(x.a - x.b);
    return d < x.p ? d * d / 2 : x.p * (d - x.p / 2);
  }
  template <class V>
  static Slopes<V> slopes(const Point<V>& x) {
    const V d = x.a - x.b;
    const V s = vabs(d) < x.p ? d : x.p * sign_of(d);
    return {s, -s};
  }
};

struct Bce {
  template <class V>
  static V clamped(V log) {
    return log < -100 ? V{} - 100 : log;
  }
  template <class V>
  static V value(const Point<V>& x) {
    return (x.b - 1) * clamped(vlog1p(-x.a)) - x.b * clamped(vlog(x.a));
  }
  template <class V>
  static Slopes<V> slopes(const Point<V>& x) {
    const V room = (1 - x.a) * x.a, least = V{} + 1e-12f;
    return {(x.a - x.b) / (room < least ? least : room), vlog1p(-x.a) - vlog(x.a)};
  }
};

struct BceLogits {
  template <class V>
  static V value(const Point<V>& x) {
    return (1 - x.b) * x.a + (1 + x.pos * x.b) * softplus(-x.a);
  }
  template <class V>
  static Slopes<V> slopes(const Point<V>& x) {
    return {(1 - x.b) - (1 + x.pos * x.b) * vsigmoid(-x.a), x.pos * softplus(-x.a) - x.a};
  }
};

struct SoftMargin {
  template <class V>
  static V value(const Point<V>& x) {
    return softplus(-x.a * x.b);
  }
  template <class V>
  static Slopes<V> slopes(const Point<V>& x) {
    const V s = -vsigmoid(-x.a * x.b);
    return {s * x.b, s * x.a};
  }
};

struct Margin {
  template <class V>
  static V value(const Point<V>& x) {
    return positive(x.p - x.a * x.b);
  }
  template <class V>
  static Slopes<V> slopes(const Point<V>& x) {
    const V room = x.p - x.a * x.b;
    return {room >= 0 ? -x.b : V{}, room >= 0 ? -x.a : V{}};
  }
};

struct HingeEmbedding {
  template <class V>
  static V value(const Point<V>& x) {
    return (x.b != 1 ? positive(x.p - x.a) : V{}) + (x.b != -1 ? x.a : V{});
  }
  template <class V>
  static Slopes<V> slopes(const Point<V>& x) {
    const V one = V{} + 1;
    const V apart = x.p - x.a >= 0 ? -one : V{};
    return {(x.b != 1 ? apart : V{}) + (x.b != -1 ? one : V{}), V{}};
  }
};

template <class Fn>
void with_kind(LossKind kind, const Fn& fn) {
  switch (kind) {
    case LossKind::kSquared:
      return fn(Squared{});
    case LossKind::kAbsolute:
      return fn(Absolute{});
    case LossKind::kSmoothL1:
      return fn(SmoothL1{});
    case LossKind::kHuber:
      return fn(Huber{});
    case LossKind::kBce:
      return fn(Bce{});
    case LossKind::kBceLogits:
      return fn(BceLogits{});
    case LossKind::kSoftMargin:
      return fn(SoftMargin{});
    case LossKind::kMargin:
      return fn(Margin{});
    case LossKind::kHingeEmbedding:
      return fn(HingeEmbedding{});
  }
}

// The arrays of a loss, read a vector at a time; past the end the lanes are zero.
template <class T>
struct Arguments {
  const LossShape& s;
  const T *a, *b, *weight, *pos_weight;

  static Vec<T> read(const T* from, int64_t i, int64_t lanes) {
    return lanes == kLanes<T> ? load(from + i) : load_first(from + i, lanes);
  }
  Point<Vec<T>> at(int64_t i, int64_t lanes) const {
    return {read(a, i, lanes), read(b, i, lanes), broadcast(T(s.parameter)),
            pos_weight ? read(pos_weight, i, lanes) - 1 : Vec<T>{}};
  }
  Vec<T> weight_at(int64_t i, int64_t lanes) const {
    return weight ? read(weight, i, lanes) : broadcast(T(1));
  }
};

struct Partial {
  double loss;
  int64_t bad;
};

int64_t pointwise_loss_workspace(const LossShape& s, int) {
  return ceil_div(s.n, kGrain) * int64_t{sizeof(Partial)};
}

template <class T>
void write(T* to, int64_t i, Vec<T> v, int64_t lanes) {
  if (lanes == kLanes<T>)
    store(to + i, v);
  else
    store_first(to + i, v, lanes);
}

template <class Kind, class T>
double forward_range(const Arguments<T>& x, int64_t begin, int64_t end, T* loss) {
  Doubles<T> sum = {};
  double rest = 0;
  for (int64_t i = begin; i < end; i += kLanes<T>) {
    const int64_t lanes = min_of(kLanes<T>, end - i);
    const Vec<T> v = Kind::value(x.at(i, lanes)) * x.weight_at(i, lanes);
    if (x.s.reduction == Reduction::kNone) {
      write(loss, i, v, lanes);
    } else if (lanes == kLanes<T>) {
      sum += to_doubles<T>(v);
    } else {
      for (int64_t l = 0; l < lanes; ++l) rest += double(v[l]);
    }
  }
  return sum_lanes<T>(sum) + rest;
}

template <class T>
int64_t first_outside_unit(int64_t begin, int64_t end, const T* a) {
  for (int64_t i = begin; i < end; ++i)
    if (a[i] < 0 || a[i] > 1) return i;
  return -1;
}

template <class T>
void pointwise_loss_forward(const Exec& exec, const LossShape& s, const T* a, const T* b,
                            const T* weight, const T* pos_weight, T* loss, int64_t* bad) {
  const Arguments<T> x{s, a, b, weight, pos_weight};
  const int64_t items = ceil_div(s.n, kGrain);
  Partial* part = static_cast<Partial*>(exec.workspace);
  with_kind(s.kind, [&](auto kind) {
    using Kind = decltype(kind);
    parallel_for(exec, items, 4 * s.n, [&](int64_t item, int) {
      const int64_t begin = item * kGrain, end = min_of(begin + kGrain, s.n);
      part[item].loss = forward_range<Kind>(x, begin, end, loss);
      part[item].bad = s.kind == LossKind::kBce ? first_outside_unit(begin, end, a) : -1;
    });
  });
  Partial sum{0, -1};
  for (int64_t item = 0; item < items; ++item) {
    sum.loss += part[item].loss;
    if (sum.bad < 0) sum.bad = part[item].bad;
  }
  *bad = sum.bad;
  if (s.reduction == Reduction::kMean) sum.loss /= double(s.n);
  if (s.reduction != Reduction::kNone) *loss = T(sum.loss);
}

template <class Kind, class T>
void backward_range(const Arguments<T>& x, int64_t begin, int64_t end, const T* dy, T* da, T* db) {
  const bool none = x.s.reduction == Reduction::kNone;
  const T divisor = x.s.reduction == Reduction::kMean ? T(x.s.n) : T(1);
  for (int64_t i = begin; i < end; i += kLanes<T>) {
    const int64_t lanes = min_of(kLanes<T>, end - i);
    const Slopes<Vec<T>> slopes = Kind::slopes(x.at(i, lanes));
    const Vec<T> up = none ? Arguments<T>::read(dy, i, lanes) : broadcast(T(dy[0] / divisor));
    const Vec<T> scale = up * x.weight_at(i, lanes);
    if (da) write(da, i, Vec<T>(slopes.a * scale), lanes);
    if (db) write(db, i, Vec<T>(slopes.b * scale), lanes);
  }
}

template <class T>
void pointwise_loss_backward(const Exec& exec, const LossShape& s, const T* a, const T* b,
                             const T* weight, const T* pos_weight, const T* dy, T* da, T* db) {
  const Arguments<T> x{s, a, b, weight, pos_weight};
  with_kind(s.kind, [&](auto kind) {
    using Kind = decltype(kind);
    parallel_for(exec, ceil_div(s.n, kGrain), 4 * s.n, [&](int64_t item, int) {
      const int64_t begin = item * kGrain;
      backward_range<Kind>(x, begin, min_of(begin + kGrain, s.n), dy, da, db);
    });
  });
}

// ---- multi-class margin ----

int64_t margin_rows(int64_t c) { return max_of(1, min_of(1024, (1 << 14) / c)); }

int64_t multi_margin_workspace(const MultiMarginShape& s, int) {
  return ceil_div(s.rows, margin_rows(s.c)) * int64_t{sizeof(Partial)};
}

template <class T>
T multi_margin_row(const MultiMarginShape& s, const T* x, int64_t y, T weight) {
  double sum = 0;
  for (int64_t i = 0; i < s.c; ++i) {
    const T room = T(s.margin) - x[y] + x[i];
    if (i != y && !(room <= 0)) sum += double(s.squared ? room * room : room);
  }
  return T(sum * double(weight) / double(s.c));
}

template <class T>
void multi_margin_forward(const Exec& exec, const MultiMarginShape& s, const T* x,
                          const int64_t* classes, const T* weight, T* loss, int64_t* bad_row) {
  const int64_t rows = margin_rows(s.c), items = ceil_div(s.rows, rows);
  Partial* part = static_cast<Partial*>(exec.workspace);
  parallel_for(exec, items, 2 * s.rows * s.c, [&](int64_t item, int) {
    Partial sum{0, -1};
    for (int64_t row = item * rows; row < min_of((item + 1) * rows, s.rows); ++row) {
      const int64_t y = classes[row];
      const bool bad = y < 0 || y >= s.c;
      if (bad && sum.bad < 0) sum.bad = row;
      const T value = bad ? T(0) : multi_margin_row(s, x + row * s.c, y, weight ? weight[y] : T(1));
      if (s.reduction == Reduction::kNone) loss[row] = value;
      sum.loss += double(value);
    }
    part[item] = sum;
  });
  Partial sum{0, -1};
  for (int64_t item = 0; item < items; ++item) {
    sum.loss += part[item].loss;
    if (sum.bad < 0) sum.bad = part[item].bad;
  }
  *bad_row = sum.bad;
  if (s.reduction == Reduction::kMean) sum.loss /= double(s.rows);
  if (s.reduction != Reduction::kNone) *loss = T(sum.loss);
}

template <class T>
void multi_margin_backward_row(const MultiMarginShape& s, const T* x, int64_t y, T scale, T* dx) {
  double sum = 0;
  for (int64_t i = 0; i < s.c; ++i) {
    const T room = T(s.margin) - x[y] + x[i];
    dx[i] = i == y || room <= 0 ? T(0) : scale * (s.squared ? 2 * room : T(1));
    sum += double(dx[i]);
  }
  dx[y] = T(-sum);
}

template <class T>
void multi_margin_backward(const Exec& exec, const MultiMarginShape& s, const T* x,
                           const int64_t* classes, const T* weight, const T* dy, T* dx) {
  const int64_t rows = margin_rows(s.c);
  const T divisor = T(s.c) * (s.reduction == Reduction::kMean ? T(s.rows) : T(1));
  parallel_for(exec, ceil_div(s.rows, rows), 2 * s.rows * s.c, [&](int64_t item, int) {
    for (int64_t row = item * rows; row < min_of((item + 1) * rows, s.rows); ++row) {
      const int64_t y = classes[row] < 0 || classes[row] >= s.c ? 0 : classes[row];
      const T up = s.reduction == Reduction::kNone ? dy[row] : dy[0];
      multi_margin_backward_row(s, x + row * s.c, y, up * (weight ? weight[y] : T(1)) / divisor,
                                dx + row * s.c);
    }
  });
}

template <class T>
void add(Ops<T>& table) {
  table.pointwise_loss_workspace = pointwise_loss_workspace;
  table.pointwise_loss_forward = pointwise_loss_forward<T>;
  table.pointwise_loss_backward = pointwise_loss_backward<T>;
  table.multi_margin_workspace = multi_margin_workspace;
  table.multi_margin_forward = multi_margin_forward<T>;
  table.multi_margin_backward = multi_margin_backward<T>;
}

}  // namespace

namespace CONVGRAD_ISA {
void add_loss_pointwise(Ops<float>& table) { add(table); }
void add_loss_pointwise(Ops<double>& table) { add(table); }
}  // namespace CONVGRAD_ISA
}  // namespace convgrad::cpu
