// Losses element by element, and the multi-class margin loss.
//
// Each kind is a struct of two functions of one element: the loss, and its slopes in input a and
// target b. A clamp passes its gradient on where it is just reached, as PyTorch's does.
#include <cmath>
#include <limits>

#include "cuda/kernels/loss_sum.cuh"
#include "cuda/kernels/math.cuh"
#include "cuda/kernels/rows.cuh"

namespace convgrad::cuda {
namespace {

static_assert(kLossThreads == kRowThreads);

template <class T>
struct Slopes {
  T a, b;
};

// One element's arguments. `p` is the loss's parameter, `pos` pos_weight - 1.
template <class T>
struct Point {
  T a, b, p, pos;
};

template <class T>
__device__ T positive(T x) {
  return x < 0 ? T(0) : x;
}
// 1, -1, or x itself where it is 0 or NaN.
template <class T>
__device__ T sign_of(T x) {
  return x > 0 ? T(1) : x < 0 ? T(-1) : x;
}
template <class T>
__device__ T softplus(T x) {  // log(1 + exp(x))
  return std::log1p(std::exp(-std::fabs(x))) + positive(x);
}

struct Squared {
  template <class T>
  __device__ static T value(const Point<T>& x) {
    return (x.a - x.b) * (x.a - x.b);
  }
  template <class T>
  __device__ static Slopes<T> slopes(const Point<T>& x) {
    return {2 * (x.a - x.b), -2 * (x.a - x.b)};
  }
};

struct Absolute {
  template <class T>
  __device__ static T value(const Point<T>& x) {
    return std::fabs(x.a - x.b);
  }
  template <class T>
  __device__ static Slopes<T> slopes(const Point<T>& x) {
    return {sign_of(x.a - x.b), -sign_of(x.a - x.b)};
  }
};

struct SmoothL1 {
  template <class T>
  __device__ static T value(const Point<T>& x) {
    const T d = std::fabs(x.a - x.b);
    return d < x.p ? d * d / (2 * x.p) : d - x.p / 2;
  }
  template <class T>
  __device__ static Slopes<T> slopes(const Point<T>& x) {
    const T d = x.a - x.b;
    const T s = std::fabs(d) < x.p ? d / x.p : sign_of(d);
    return {s, -s};
  }
};

struct Huber {
  template <class T>
  __device__ static T value(const Point<T>& x) {
    const T d = std::fabs(x.a - x.b);
    return d < x.p ? d * d / 2 : x.p * (d - x.p / 2);
  }
  template <class T>
  __device__ static Slopes<T> slopes(const Point<T>& x) {
    const T d = x.a - x.b;
    const T s = std::fabs(d) < x.p ? d : x.p * sign_of(d);
    return {s, -s};
  }
};

struct Bce {
  template <class T>
  __device__ static T clamped(T log) {
    return log < -100 ? T(-100) : log;
  }
  template <class T>
  __device__ static T value(const Point<T>& x) {
    return (x.b - 1) * clamped(std::log1p(-x.a)) - x.b * clamped(std::log(x.a));
  }
  template <class T>
  __device__ static Slopes<T> slopes(const Point<T>& x) {
    const T room = (1 - x.a) * x.a, least = T(1e-12f);
    return {(x.a - x.b) / (room < least ? least : room), std::log1p(-x.a) - std::log(x.a)};
  }
};

struct BceLogits {
  template <class T>
  __device__ static T value(const Point<T>& x) {
    return (1 - x.b) * x.a + (1 + x.pos * x.b) * softplus(-x.a);
  }
  template <class T>
  __device__ static Slopes<T> slopes(const Point<T>& x) {
    return {(1 - x.b) - (1 + x.pos * x.b) * sigmoid(-x.a), x.pos * softplus(-x.a) - x.a};
  }
};

struct SoftMargin {
  template <class T>
  __device__ static T value(const Point<T>& x) {
    return softplus(-x.a * x.b);
  }
  template <class T>
  __device__ static Slopes<T> slopes(const Point<T>& x) {
    const T s = -sigmoid(-x.a * x.b);
    return {s * x.b, s * x.a};
  }
};

struct Margin {
  template <class T>
  __device__ static T value(const Point<T>& x) {
    return positive(x.p - x.a * x.b);
  }
  template <class T>
  __device__ static Slopes<T> slopes(const Point<T>& x) {
    const T room = x.p - x.a * x.b;
    return {room >= 0 ? -x.b : T(0), room >= 0 ? -x.a : T(0)};
  }
};

struct HingeEmbedding {
  template <class T>
  __device__ static T value(const Point<T>& x) {
    return (x.b != 1 ? positive(x.p - x.a) : T(0)) + (x.b != -1 ? x.a : T(0));
  }
  template <class T>
  __device__ static Slopes<T> slopes(const Point<T>& x) {
    const T apart = x.p - x.a >= 0 ? T(-1) : T(0);
    return {(x.b != 1 ? apart : T(0)) + (x.b != -1 ? T(1) : T(0)), T(0)};
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

// The arrays of a loss, read a pack at a time.
template <class T>
struct Arguments {
  LossShape s;
  const T *a, *b, *weight, *pos_weight;
  bool packed;

  template <int N>
  __device__ Pack<T, N> read(const T* p, int64_t i) const {
    return load_some<N>(p, i, s.n, packed);
  }
  // Element k of the pack; pos 0 without pos_weight.
  template <int N>
  __device__ void points(int64_t i, Point<Acc<T>> (&point)[N]) const {
    using A = Acc<T>;
    const Pack<T, N> first = read<N>(a, i), second = read<N>(b, i);
    for (int k = 0; k < N; ++k) point[k] = {A(first[k]), A(second[k]), A(s.parameter), A(0)};
    if (!pos_weight) return;
    const Pack<T, N> pos = read<N>(pos_weight, i);
    for (int k = 0; k < N; ++k) point[k].pos = A(pos[k]) - 1;
  }
  template <int N>
  __device__ Pack<T, N> weights(int64_t i) const {
    if (weight) return read<N>(weight, i);
    Pack<T, N> ones;
    for (int k = 0; k < N; ++k) ones[k] = T(1);
    return ones;
  }
};

template <class Kind, class T>
__global__ void __launch_bounds__(kLossThreads)
    pointwise_forward(Arguments<T> x, LossOutput<Acc<T>> out, ValueError* errors, const char* op) {
  constexpr int N = kPack<T>;
  LossSum sum;
  for (int64_t i = thread_index() * N; i < x.s.n; i += thread_count() * N) {
    Point<Acc<T>> point[N];
    x.points(i, point);
    const Pack<T, N> weight = x.template weights<N>(i);
    Pack<Acc<T>, N> value;
    for (int k = 0; k < N; ++k) {
      if (i + k >= x.s.n) break;
      if (x.s.kind == LossKind::kBce && (point[k].a < 0 || point[k].a > 1))
        report_real(errors, op, double(point[k].a), 0, 1);
      value[k] = Acc<T>(weight[k]) * Kind::value(point[k]);
      sum.loss += double(value[k]);
      sum.weight += 1;
    }
    if (out.reduction == Reduction::kNone) store_some(out.loss, i, x.s.n, x.packed, value);
  }
  add_up(out, sum, shared<LossScratch>().sums);
}

template <class Kind, class T>
__global__ void __launch_bounds__(kLossThreads)
    pointwise_backward(Arguments<T> x, const Acc<T>* dy, T* da, T* db) {
  constexpr int N = kPack<T>;
  const bool none = x.s.reduction == Reduction::kNone;
  const Acc<T> divisor = x.s.reduction == Reduction::kMean ? Acc<T>(x.s.n) : Acc<T>(1);
  for (int64_t i = thread_index() * N; i < x.s.n; i += thread_count() * N) {
    Point<Acc<T>> point[N];
    x.points(i, point);
    const Pack<T, N> weight = x.template weights<N>(i);
    Pack<Acc<T>, N> up;
    Pack<T, N> a, b;
    if (none) up = load_some<N>(dy, i, x.s.n, x.packed);
    for (int k = 0; k < N; ++k) {
      const Acc<T> scale = Acc<T>(weight[k]) * (none ? up[k] : dy[0] / divisor);
      const Slopes<Acc<T>> slopes = Kind::slopes(point[k]);
      a[k] = T(slopes.a * scale);
      b[k] = T(slopes.b * scale);
    }
    if (da) store_some(da, i, x.s.n, x.packed, a);
    if (db) store_some(db, i, x.s.n, x.packed, b);
  }
}

// Blocks for n elements, at least one: the sum of none is still to be written.
template <class T>
int64_t pointwise_blocks(int64_t n) {
  const int64_t blocks = ceil_div(n, kLossThreads * kPack<T>);
  return std::max<int64_t>(1, std::min(blocks, kRowBlocks));
}

template <class T>
int64_t pointwise_loss_workspace(const LossShape& s, int) {
  return pointwise_blocks<T>(s.n) * int64_t{sizeof(LossSum)};
}

template <class T>
void pointwise_loss_forward(const Exec& exec, const LossShape& s, const T* a, const T* b,
                            const T* weight, const T* pos_weight, Stat<T>* loss, int64_t* bad) {
  *bad = -1;  // the device reports one by exec.errors
  const LossOutput<Stat<T>> out{s.reduction, static_cast<LossSum*>(exec.workspace), loss, nullptr};
  const bool packed =
      aligned(a, b, weight, pos_weight) && (s.reduction != Reduction::kNone || aligned(loss));
  const int64_t blocks = pointwise_blocks<T>(s.n);
  with_kind(s.kind, [&](auto kind) {
    launch(exec, pointwise_forward<decltype(kind), T>, dim3(unsigned(blocks)), dim3(kLossThreads),
           sizeof(LossScratch), Arguments<T>{s, a, b, weight, pos_weight, packed}, out, exec.errors,
           exec.op);
  });
  finish_loss(exec, out, blocks);
}

template <class T>
void pointwise_loss_backward(const Exec& exec, const LossShape& s, const T* a, const T* b,
                             const T* weight, const T* pos_weight, const Stat<T>* dy, T* da,
                             T* db) {
  if (s.n == 0) return;
  const bool packed =
      aligned(a, b, weight, pos_weight, da, db) && (s.reduction != Reduction::kNone || aligned(dy));
  with_kind(s.kind, [&](auto kind) {
    launch(exec, pointwise_backward<decltype(kind), T>, dim3(unsigned(pointwise_blocks<T>(s.n))),
           dim3(kLossThreads), 0, Arguments<T>{s, a, b, weight, pos_weight, packed}, dy, da, db);
  });
}

// ---- multi-class margin ----

int64_t multi_margin_workspace(const MultiMarginShape& s, int) {
  int64_t blocks = 0;
  with_team(s.c, [&](auto team) { blocks = row_blocks(s.rows, team.value); });
  return blocks * int64_t{sizeof(LossSum)};
}

// A row's class, or 0 where it is out of range.
__device__ inline int64_t class_within(int64_t y, int64_t c) { return y < 0 || y >= c ? 0 : y; }

template <class T, int kLanes>
__global__ void __launch_bounds__(kRowThreads)
    multi_margin_forward_kernel(MultiMarginShape s, const T* x, const int64_t* classes,
                                const Acc<T>* weight, LossOutput<Acc<T>> out, ValueError* errors,
                                const char* op) {
  using A = Acc<T>;
  RowScratch<A>& scratch = shared<RowScratch<A>>();
  const Team<kLanes> team;
  LossSum total;
  team.for_rows(s.rows, [&](int64_t row, bool valid) {
    const T* in = x + row * s.c;
    const int64_t wanted = classes[row], y = class_within(wanted, s.c);
    double sum = 0;
    for (int64_t i = team.lane(); i < s.c; i += kLanes) {
      const A room = A(s.margin) - A(in[y]) + A(in[i]);
      if (i != y && !(room <= 0)) sum += double(s.squared ? room * room : room);
    }
    sum = team.reduce(sum, scratch.sums, Plus<double>{});
    if (!valid || team.lane() != 0) return;
    A value = A(sum * (weight ? double(weight[y]) : 1) / double(s.c));
    if (wanted != y) {
      report(errors, op, wanted, 0, s.c);
      value = std::numeric_limits<A>::quiet_NaN();
    }
    if (s.reduction == Reduction::kNone) out.loss[row] = value;
    total.loss += double(value);
    total.weight += 1;
  });
  add_up(out, total, scratch.sums);
}

template <class T>
void multi_margin_forward(const Exec& exec, const MultiMarginShape& s, const T* x,
                          const int64_t* classes, const Stat<T>* weight, Stat<T>* loss,
                          int64_t* bad_row) {
  *bad_row = -1;  // the device reports one by exec.errors
  const LossOutput<Stat<T>> out{s.reduction, static_cast<LossSum*>(exec.workspace), loss, nullptr};
  with_team(s.c, [&](auto team) {
    const int64_t blocks = row_blocks(s.rows, team.value);
    launch(exec, multi_margin_forward_kernel<T, team.value>, dim3(unsigned(blocks)),
           dim3(kRowThreads), sizeof(RowScratch<Acc<T>>), s, x, classes, weight, out, exec.errors,
           exec.op);
    finish_loss(exec, out, blocks);
  });
}

template <class T, int kLanes>
__global__ void __launch_bounds__(kRowThreads)
    multi_margin_backward_kernel(MultiMarginShape s, const T* x, const int64_t* classes,
                                 const Acc<T>* weight, Acc<T> share, const Acc<T>* dy, T* dx) {
  using A = Acc<T>;
  RowScratch<A>& scratch = shared<RowScratch<A>>();
  const Team<kLanes> team;
  team.for_rows(s.rows, [&](int64_t row, bool valid) {
    const T* in = x + row * s.c;
    const int64_t y = class_within(classes[row], s.c);
    const A up = s.reduction == Reduction::kNone ? dy[row] : dy[0];
    const A scale = up * share * (weight ? weight[y] : A(1));
    double sum = 0;
    for (int64_t i = team.lane(); i < s.c; i += kLanes) {
      const A room = A(s.margin) - A(in[y]) + A(in[i]);
      const A slope = i == y || room <= 0 ? A(0) : scale * (s.squared ? 2 * room : A(1));
      if (valid && i != y) dx[row * s.c + i] = T(slope);
      sum += double(slope);
    }
    sum = team.reduce(sum, scratch.sums, Plus<double>{});
    if (valid && team.lane() == 0) dx[row * s.c + y] = T(-sum);
  });
}

template <class T>
void multi_margin_backward(const Exec& exec, const MultiMarginShape& s, const T* x,
                           const int64_t* classes, const Stat<T>* weight, const Stat<T>* dy,
                           T* dx) {
  if (s.rows == 0) return;
  const double terms = double(s.c) * (s.reduction == Reduction::kMean ? double(s.rows) : 1);
  with_team(s.c, [&](auto team) {
    launch(exec, multi_margin_backward_kernel<T, team.value>,
           dim3(unsigned(row_blocks(s.rows, team.value))), dim3(kRowThreads),
           sizeof(RowScratch<Acc<T>>), s, x, classes, weight, Acc<T>(1 / terms), dy, dx);
  });
}

template <class T>
void add(Ops<T>& table) {
  table.pointwise_loss_workspace = pointwise_loss_workspace<T>;
  table.pointwise_loss_forward = pointwise_loss_forward<T>;
  table.pointwise_loss_backward = pointwise_loss_backward<T>;
  table.multi_margin_workspace = multi_margin_workspace;
  table.multi_margin_forward = multi_margin_forward<T>;
  table.multi_margin_backward = multi_margin_backward<T>;
}

}  // namespace

CONVGRAD_STEM(loss_pointwise)

}  // namespace convgrad::cuda
