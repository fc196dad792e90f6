// Elementwise functions: one functor each, with the forward pass and the backward pass side by
// side. `s` is what the forward pass saved: x, or y where that is enough.
#include "parallel.h"
#include "vmath.h"

namespace convgrad::cpu {
namespace {

template <class T>
struct Params {
  T a, b;
};
struct Cheap {
  static constexpr int64_t kWork = 1;  // for parallel_for, per element
};
struct Costly {
  static constexpr int64_t kWork = 8;
};

// One function as two expressions: the value at x, and dy times the derivative at s.
#define CONVGRAD_UNARY(name, cost, value, gradient)                              \
  template <class T>                                                             \
  struct name : cost {                                                           \
    using V = Vec<T>;                                                            \
    using P = Params<T>;                                                         \
    static V forward(V x, [[maybe_unused]] const P& p) { return value; }         \
    static V backward([[maybe_unused]] V s, V dy, [[maybe_unused]] const P& p) { \
      return gradient;                                                           \
    }                                                                            \
  }

template <class T>
Vec<T> between(Vec<T> x, T low, T high) {
  return x < low ? broadcast(low) : x > high ? broadcast(high) : x;
}

// ---- piecewise linear. NaN goes through as in PyTorch ----

CONVGRAD_UNARY(Relu, Cheap, x < T(0) ? V{} : x, s <= T(0) ? V{} : dy);
CONVGRAD_UNARY(LeakyRelu, Cheap, x > T(0) ? x : p.a * x, s > T(0) ? dy : p.a * dy);
CONVGRAD_UNARY(Hardtanh, Cheap, between(x, p.a, p.b), (s > p.a) & (s < p.b) ? dy : V{});
CONVGRAD_UNARY(Clamp, Cheap, between(x, p.a, p.b), (s < p.a) | (s > p.b) ? V{} : dy);
CONVGRAD_UNARY(Hardsigmoid, Cheap, between<T>(x + T(3), 0, 6) / T(6),
               (s > T(-3)) & (s < T(3)) ? dy / T(6) : V{});
CONVGRAD_UNARY(Hardswish, Cheap, between<T>(x + T(3), 0, 6) * x / T(6),
               s <= T(-3)  ? V{}
               : s >= T(3) ? dy
                           : dy * (s / T(3) + T(0.5)));

// ---- exponential ----

CONVGRAD_UNARY(Elu, Costly, x > T(0) ? x : p.a * vexpm1(x), s > T(0) ? dy : dy * (s + p.a));
CONVGRAD_UNARY(EluFromInput, Costly, Elu<T>::forward(x, p), s > T(0) ? dy : dy * (p.a * vexp(s)));
CONVGRAD_UNARY(Sigmoid, Costly, vsigmoid(x), (T(1) - s) * s * dy);
CONVGRAD_UNARY(LogSigmoid, Costly, (x < T(0) ? x : V{}) - vlog1p(vexp(-vabs(x))),
               vsigmoid(-s) * dy);
CONVGRAD_UNARY(Tanh, Costly, vtanh(x), (T(1) - s * s) * dy);
CONVGRAD_UNARY(Softplus, Costly, (p.a * x > p.b) ? x : vlog1p(vexp(p.a * x)) / p.a,
               (p.a * s > p.b) ? dy : dy * vsigmoid(p.a * s));

template <class T>
struct Selu : Costly {
  static constexpr T kScale = T(1.0507009873554804934193349852946);
  static constexpr T kAlpha = T(1.6732632423543772848170429916717) * kScale;
  static Vec<T> forward(Vec<T> x, const Params<T>&) {
    return x > T(0) ? kScale * x : kAlpha * vexpm1(x);
  }
  static Vec<T> backward(Vec<T> y, Vec<T> dy, const Params<T>&) {
    return y > T(0) ? kScale * dy : dy * (y + kAlpha);
  }
};

template <class T>
struct Silu : Costly {
  static Vec<T> forward(Vec<T> x, const Params<T>&) { return x * vsigmoid(x); }
  static Vec<T> backward(Vec<T> x, Vec<T> dy, const Params<T>&) {
    const Vec<T> gate = vsigmoid(x);
    return dy * (gate * (T(1) + x * (T(1) - gate)));
  }
};

template <class T>
struct Mish : Costly {
  static Vec<T> forward(Vec<T> x, const Params<T>&) { return vmish(x); }
  // With t = n / (n + 2), see vmish: t' = sigmoid(x) (1 - t^2).
  static Vec<T> backward(Vec<T> x, Vec<T> dy, const Params<T>&) {
    const Vec<T> e = vexp(x > T(20) ? broadcast(T(20)) : x), n = e * (e + T(2)), t = n / (n + T(2));
    return dy * (t + x * vsigmoid(x) * (T(1) - t * t));
  }
};

template <class T>
struct Softsign : Cheap {
  static Vec<T> forward(Vec<T> x, const Params<T>&) { return x / (T(1) + vabs(x)); }
  static Vec<T> backward(Vec<T> x, Vec<T> dy, const Params<T>&) {
    const Vec<T> d = T(1) + vabs(x);
    return dy / (d * d);
  }
};

template <class T>
struct Gelu : Costly {
  // x P(X < x) = max(x, 0) - |x| P(X > |x|): nothing cancels.
  static Vec<T> forward(Vec<T> x, const Params<T>&) {
    return x > T(40) ? x : (x > T(0) ? x : Vec<T>{}) - times_normal_tail(vabs(x));
  }
  static Vec<T> backward(Vec<T> x, Vec<T> dy, const Params<T>&) {
    const Vec<T> a = vabs(x), e = bell(a), tail = normal_tail(a, e);
    return dy * ((x >= T(0) ? T(1) - tail : tail) + x * e * T(0.3989422804014327));
  }
};

template <class T>
struct GeluTanh : Costly {
  static Vec<T> forward(Vec<T> x, const Params<T>&) { return x * gelu_gate(x); }
  static Vec<T> backward(Vec<T> s, Vec<T> dy, const Params<T>&) {
    const Vec<T> gate = gelu_gate(s), x = between<T>(s, -11, 11);  // beyond, the second term is 0
    const Vec<T> slope = T(2 * kGeluScale) + T(6 * kGeluScale * kGeluCubic) * x * x;
    return dy * (gate + x * gate * (T(1) - gate) * slope);
  }
};

// ---- arithmetic ----

CONVGRAD_UNARY(Exp, Costly, vexp(x), (s * dy));
CONVGRAD_UNARY(Expm1, Costly, vexpm1(x), (s + T(1)) * dy);
CONVGRAD_UNARY(Log, Costly, vlog(x), dy / s);
CONVGRAD_UNARY(Log1p, Costly, vlog1p(x), dy / (s + T(1)));
CONVGRAD_UNARY(Erf, Costly, verf(x),
               T(1.1283791670955126) * bell(T(1.4142135623730951) * vabs(s)) * dy);
CONVGRAD_UNARY(Sqrt, Cheap, vsqrt(x), dy / (T(2) * s));
CONVGRAD_UNARY(Rsqrt, Cheap, T(1) / vsqrt(x), T(-0.5) * s * s * s * dy);
CONVGRAD_UNARY(Reciprocal, Cheap, T(1) / x, -(s * s * dy));
CONVGRAD_UNARY(Square, Cheap, (x * x), T(2) * s * dy);
CONVGRAD_UNARY(Abs, Cheap, vabs(x), s > T(0) ? dy : s < T(0) ? -dy : dy * s);  // at 0: 0
CONVGRAD_UNARY(Neg, Cheap, -x, -dy);

// ---- the loops ----

template <class T, class F>
void forward_loop(const Exec& exec, const UnaryParams& params, int64_t n, const T* x, T* y) {
  const Params<T> p{static_cast<T>(params.a), static_cast<T>(params.b)};
  parallel_for(exec, ceil_div(n, kGrain), n * F::kWork, [&](int64_t item, int) {
    int64_t i = item * kGrain;
    const int64_t end = min_of(i + kGrain, n);
    for (; i + kLanes<T> <= end; i += kLanes<T>) store(y + i, F::forward(load(x + i), p));
    if (i < end) store_first(y + i, F::forward(load_first(x + i, end - i), p), end - i);
  });
}

template <class T, class F>
void backward_loop(const Exec& exec, const UnaryParams& params, int64_t n, const T* s, const T* dy,
                   T* dx) {
  const Params<T> p{static_cast<T>(params.a), static_cast<T>(params.b)};
  parallel_for(exec, ceil_div(n, kGrain), n * F::kWork, [&](int64_t item, int) {
    int64_t i = item * kGrain;
    const int64_t end = min_of(i + kGrain, n);
    for (; i + kLanes<T> <= end; i += kLanes<T>)
      store(dx + i, F::backward(load(s + i), load(dy + i), p));
    if (i == end) return;
    const Vec<T> tail = F::backward(load_first(s + i, end - i), load_first(dy + i, end - i), p);
    store_first(dx + i, tail, end - i);
  });
}

template <class T>
void unary_forward(const Exec& exec, Unary kind, const UnaryParams& p, int64_t n, const T* x,
                   T* y) {
  switch (kind) {
#define CONVGRAD_CASE(F, name) \
  case Unary::k##F:            \
    return forward_loop<T, F<T>>(exec, p, n, x, y);
    CONVGRAD_UNARIES(CONVGRAD_CASE)
#undef CONVGRAD_CASE
  }
}

template <class T>
void unary_backward(const Exec& exec, Unary kind, const UnaryParams& p, int64_t n, const T* s,
                    const T* dy, T* dx) {
  switch (kind) {
#define CONVGRAD_CASE(F, name) \
  case Unary::k##F:            \
    return backward_loop<T, F<T>>(exec, p, n, s, dy, dx);
    CONVGRAD_UNARIES(CONVGRAD_CASE)
#undef CONVGRAD_CASE
  }
}

template <class T>
void add(Ops<T>& table) {
  table.unary_forward = unary_forward<T>;
  table.unary_backward = unary_backward<T>;
}

}  // namespace

namespace CONVGRAD_ISA {
void add_activation(Ops<float>& table) { add(table); }
void add_activation(Ops<double>& table) { add(table); }
}  // namespace CONVGRAD_ISA
}  // namespace convgrad::cpu
