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

#define CONVGRAD_FUNCTOR(name, cost)                        \
  template <class T, class V = Vec<T>, class P = Params<T>> \
  struct name : cost
#define CONVGRAD_FORWARD static inline V forward([[maybe_unused]] V x, [[maybe_unused]] const P& p)
#define CONVGRAD_BACKWARD \
  static inline V backward([[maybe_unused]] V s, V dy, [[maybe_unused]] const P& p)

// ---- piecewise linear. NaN goes through as in PyTorch ----

CONVGRAD_FUNCTOR(Relu, Cheap){CONVGRAD_FORWARD{return x < T(0) ? V{} : x;
}  // namespace
CONVGRAD_BACKWARD { return s <= T(0) ? V{} : dy; }
};  // namespace convgrad::cpu
CONVGRAD_FUNCTOR(LeakyRelu, Cheap){CONVGRAD_FORWARD{return x > T(0) ? x : p.a * x;
}
CONVGRAD_BACKWARD { return s > T(0) ? dy : p.a * dy; }
}
;
CONVGRAD_FUNCTOR(Hardtanh, Cheap){CONVGRAD_FORWARD{return x < p.a   ? broadcast(p.a)
                                                          : x > p.b ? broadcast(p.b)
                                                                    : x;
}
CONVGRAD_BACKWARD { return (s > p.a) & (s < p.b) ? dy : V{}; }
}
;
CONVGRAD_FUNCTOR(Clamp, Cheap){CONVGRAD_FORWARD{return Hardtanh<T>::forward(x, p);
}
CONVGRAD_BACKWARD { return (s < p.a) | (s > p.b) ? V{} : dy; }
}
;
CONVGRAD_FUNCTOR(Hardsigmoid,
                 Cheap){CONVGRAD_FORWARD{return Hardtanh<T>::forward(x + T(3), {T(0), T(6)}) / T(6);
}
CONVGRAD_BACKWARD { return (s > T(-3)) & (s < T(3)) ? dy / T(6) : V{}; }
}
;
CONVGRAD_FUNCTOR(Hardswish, Cheap){
    CONVGRAD_FORWARD{return x * Hardtanh<T>::forward(x + T(3), {T(0), T(6)}) / T(6);
}
CONVGRAD_BACKWARD { return s <= T(-3) ? V{} : s >= T(3) ? dy : dy * (s / T(3) + T(0.5)); }
}
;

// ---- exponential ----

CONVGRAD_FUNCTOR(Elu, Costly){CONVGRAD_FORWARD{return x > T(0) ? x : p.a * vexpm1(x);
}
CONVGRAD_BACKWARD { return s > T(0) ? dy : dy * (s + p.a); }
}
;
CONVGRAD_FUNCTOR(EluFromInput, Costly){CONVGRAD_FORWARD{return Elu<T>::forward(x, p);
}
CONVGRAD_BACKWARD { return s > T(0) ? dy : dy * (p.a * vexp(s)); }
}
;
CONVGRAD_FUNCTOR(Selu, Costly) {
  static constexpr T kScale = T(1.0507009873554804934193349852946);
  static constexpr T kAlpha =
      T(1.6732632423543772848170429916717 * 1.0507009873554804934193349852946);
  CONVGRAD_FORWARD { return x > T(0) ? kScale * x : kAlpha * vexpm1(x); }
  CONVGRAD_BACKWARD { return s > T(0) ? kScale * dy : dy * (s + kAlpha); }
};
CONVGRAD_FUNCTOR(Sigmoid, Costly){CONVGRAD_FORWARD{return vsigmoid(x);
}
CONVGRAD_BACKWARD { return dy * ((T(1) - s) * s); }
}
;
CONVGRAD_FUNCTOR(LogSigmoid,
                 Costly){CONVGRAD_FORWARD{return (x < T(0) ? x : V{}) - vlog1p(vexp(-vabs(x)));
}
CONVGRAD_BACKWARD { return dy * vsigmoid(-s); }
}
;
CONVGRAD_FUNCTOR(Tanh, Costly){CONVGRAD_FORWARD{return vtanh(x);
}
CONVGRAD_BACKWARD { return dy * (T(1) - s * s); }
}
;
CONVGRAD_FUNCTOR(Silu, Costly){CONVGRAD_FORWARD{return x * vsigmoid(x);
}
CONVGRAD_BACKWARD {
  const V gate = vsigmoid(s);
  return dy * (gate * (T(1) + s * (T(1) - gate)));
}
}
;
CONVGRAD_FUNCTOR(Softplus, Costly){CONVGRAD_FORWARD{const V z = p.a * x;
return z > p.b ? x : vlog1p(vexp(z)) / p.a;
}
CONVGRAD_BACKWARD {
  const V z = p.a * s;
  return z > p.b ? dy : dy * vsigmoid(z);
}
}
;
CONVGRAD_FUNCTOR(Mish, Costly){
    // tanh(log(1 + e)) = (e^2 + 2 e) / (e^2 + 2 e + 2) with e = e^x; 1 in T from x = 20 on.
    static inline V gate(V x){const V e = vexp(x > T(20) ? broadcast(T(20)) : x),
                              n = e * (e + T(2));
return n / (n + T(2));
}
CONVGRAD_FORWARD { return x * gate(x); }
CONVGRAD_BACKWARD {
  const V t = gate(s);
  return dy * (t + s * vsigmoid(s) * (T(1) - t * t));
}
}
;
CONVGRAD_FUNCTOR(Softsign, Cheap){CONVGRAD_FORWARD{return x / (T(1) + vabs(x));
}
CONVGRAD_BACKWARD {
  const V d = T(1) + vabs(s);
  return dy / (d * d);
}
}
;
CONVGRAD_FUNCTOR(Gelu,
                 Costly){// x P(X < x) = max(x, 0) - |x| P(X > |x|): nothing cancels.
                         CONVGRAD_FORWARD{const V a = vabs(x), below = a * normal_tail(a, bell(a));
return x > T(40) ? x : (x > T(0) ? x : V{}) - below;
}
CONVGRAD_BACKWARD {
  const V a = vabs(s), e = bell(a), tail = normal_tail(a, e);
  return dy * ((s >= T(0) ? T(1) - tail : tail) + s * e * T(0.3989422804014327));
}
}
;
CONVGRAD_FUNCTOR(GeluTanh, Costly){CONVGRAD_FORWARD{return x * gelu_gate(x);
}
CONVGRAD_BACKWARD {
  const V gate = gelu_gate(s);
  V x = s > T(11) ? broadcast(T(11)) : s;  // beyond, the second term is 0
  x = x < T(-11) ? broadcast(T(-11)) : x;
  const V slope = T(2 * kGeluScale) + T(6 * kGeluScale * kGeluCubic) * x * x;
  return dy * (gate + x * gate * (T(1) - gate) * slope);
}
}
;

// ---- arithmetic ----

CONVGRAD_FUNCTOR(Exp, Costly){CONVGRAD_FORWARD{return vexp(x);
}
CONVGRAD_BACKWARD { return dy * s; }
}
;
CONVGRAD_FUNCTOR(Expm1, Costly){CONVGRAD_FORWARD{return vexpm1(x);
}
CONVGRAD_BACKWARD { return dy * (s + T(1)); }
}
;
CONVGRAD_FUNCTOR(Log, Costly){CONVGRAD_FORWARD{return vlog(x);
}
CONVGRAD_BACKWARD { return dy / s; }
}
;
CONVGRAD_FUNCTOR(Log1p, Costly){CONVGRAD_FORWARD{return vlog1p(x);
}
CONVGRAD_BACKWARD { return dy / (s + T(1)); }
}
;
CONVGRAD_FUNCTOR(Erf, Costly){CONVGRAD_FORWARD{return verf(x);
}
CONVGRAD_BACKWARD { return dy * (T(1.1283791670955126) * bell(T(1.4142135623730951) * vabs(s))); }
}
;
CONVGRAD_FUNCTOR(Sqrt, Cheap){CONVGRAD_FORWARD{return vsqrt(x);
}
CONVGRAD_BACKWARD { return dy / (T(2) * s); }
}
;
CONVGRAD_FUNCTOR(Rsqrt, Cheap){CONVGRAD_FORWARD{return T(1) / vsqrt(x);
}
CONVGRAD_BACKWARD { return dy * (T(-0.5) * s * s * s); }
}
;
CONVGRAD_FUNCTOR(Reciprocal, Cheap){CONVGRAD_FORWARD{return T(1) / x;
}
CONVGRAD_BACKWARD { return -dy * (s * s); }
}
;
CONVGRAD_FUNCTOR(Square, Cheap){CONVGRAD_FORWARD{return x * x;
}
CONVGRAD_BACKWARD { return dy * (T(2) * s); }
}
;
CONVGRAD_FUNCTOR(Abs, Cheap){CONVGRAD_FORWARD{return vabs(x);
}
CONVGRAD_BACKWARD { return s > T(0) ? dy : s < T(0) ? -dy : dy * s; }  // at 0: 0; NaN stays
}
;
CONVGRAD_FUNCTOR(Neg, Cheap){CONVGRAD_FORWARD{return -x;
}
CONVGRAD_BACKWARD { return -dy; }
}
;

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
