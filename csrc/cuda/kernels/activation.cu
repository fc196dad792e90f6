// Elementwise functions: one functor each, with the forward pass and the backward pass side by
// side. `s` is what the forward pass saved: x, or y where that is enough.
#include "cuda/kernels/math.cuh"
#include "cuda/packs.cuh"

namespace convgrad::cuda {
namespace {

template <class T>
struct Params {
  T a, b;
};

// One function as two expressions: the value at x, and dy times the derivative at s.
#define CONVGRAD_UNARY(name, value, gradient)                                               \
  template <class T>                                                                        \
  struct name {                                                                             \
    using P = Params<T>;                                                                    \
    __device__ static T forward(T x, [[maybe_unused]] const P& p) { return value; }         \
    __device__ static T backward([[maybe_unused]] T s, T dy, [[maybe_unused]] const P& p) { \
      return gradient;                                                                      \
    }                                                                                       \
  }

template <class T>
__device__ T between(T x, T low, T high) {
  return x < low ? low : x > high ? high : x;
}

// ---- piecewise linear. NaN goes through as in PyTorch ----

CONVGRAD_UNARY(Relu, x < T(0) ? T(0) : x, s <= T(0) ? T(0) : dy);
CONVGRAD_UNARY(LeakyRelu, x > T(0) ? x : p.a * x, s > T(0) ? dy : p.a * dy);
CONVGRAD_UNARY(Hardtanh, between(x, p.a, p.b), s > p.a && s < p.b ? dy : T(0));
CONVGRAD_UNARY(Clamp, between(x, p.a, p.b), s<p.a || s> p.b ? T(0) : dy);
CONVGRAD_UNARY(Hardsigmoid, between<T>(x + T(3), 0, 6) / T(6),
               s > T(-3) && s < T(3) ? dy / T(6) : T(0));
CONVGRAD_UNARY(Hardswish, between<T>(x + T(3), 0, 6) * x / T(6),
               s <= T(-3)  ? T(0)
               : s >= T(3) ? dy
                           : dy * (s / T(3) + T(0.5)));

// ---- exponential ----

CONVGRAD_UNARY(Elu, x > T(0) ? x : p.a * std::expm1(x), s > T(0) ? dy : dy * (s + p.a));
CONVGRAD_UNARY(EluFromInput, Elu<T>::forward(x, p), s > T(0) ? dy : dy * (p.a * exponential(s)));
CONVGRAD_UNARY(Sigmoid, sigmoid(x), (T(1) - s) * s * dy);
CONVGRAD_UNARY(LogSigmoid, (x < T(0) ? x : T(0)) - std::log1p(exponential(-std::abs(x))),
               sigmoid(-s) * dy);
CONVGRAD_UNARY(Tanh, std::tanh(x), (T(1) - s * s) * dy);
CONVGRAD_UNARY(Softplus, p.a* x > p.b ? x : std::log1p(exponential(p.a * x)) / p.a,
               p.a* s > p.b ? dy : dy * sigmoid(p.a * s));

template <class T>
struct Selu {
  static constexpr T kScale = T(1.0507009873554804934193349852946);
  static constexpr T kAlpha = T(1.6732632423543772848170429916717) * kScale;
  __device__ static T forward(T x, const Params<T>&) {
    return x > T(0) ? kScale * x : kAlpha * std::expm1(x);
  }
  __device__ static T backward(T y, T dy, const Params<T>&) {
    return y > T(0) ? kScale * dy : dy * (y + kAlpha);
  }
};

template <class T>
struct Silu {
  __device__ static T forward(T x, const Params<T>&) { return x * sigmoid(x); }
  __device__ static T backward(T x, T dy, const Params<T>&) {
    const T gate = sigmoid(x);
    return dy * (gate * (T(1) + x * (T(1) - gate)));
  }
};

// x tanh(log(1 + e)) = x n / (n + 2), n = e (e + 2), e = e^x; x itself, in T, from kLinear on.
template <class T>
struct Mish {
  static constexpr T kLinear = sizeof(T) == 4 ? T(20) : T(40);
  // In double after the exponential, or the roundings would add up to more than 4 ULP.
  __device__ static T forward(T x, const Params<T>&) {
    const double e = exponential(x > kLinear ? kLinear : x), n = e * (e + 2);
    return T(x * n / (n + 2));
  }
  // With t = n / (n + 2): t' = sigmoid(x) (1 - t^2).
  __device__ static T backward(T x, T dy, const Params<T>&) {
    const T e = exponential(x > T(20) ? T(20) : x), n = e * (e + T(2)), t = n / (n + T(2));
    return dy * (t + x * sigmoid(x) * (T(1) - t * t));
  }
};

template <class T>
struct Softsign {
  __device__ static T forward(T x, const Params<T>&) { return x / (T(1) + std::abs(x)); }
  __device__ static T backward(T x, T dy, const Params<T>&) {
    const T d = T(1) + std::abs(x);
    return dy / (d * d);
  }
};

template <class T>
struct Gelu {
  // x P(X < x) = max(x, 0) - |x| P(X > |x|): nothing cancels.
  __device__ static T forward(T x, const Params<T>&) {
    return x > T(40) ? x : (x > T(0) ? x : T(0)) - times_normal_tail(std::abs(x));
  }
  __device__ static T backward(T x, T dy, const Params<T>&) {
    const T a = std::abs(x), e = bell(a), tail = normal_tail(a, e);
    return dy * ((x >= T(0) ? T(1) - tail : tail) + x * e * T(0.3989422804014327));
  }
};

template <class T>
struct GeluTanh {
  static constexpr double kScale = 0.7978845608028654, kCubic = 0.044715;
  static constexpr T kFlat = sizeof(T) == 4 ? T(11) : T(40);  // the gate is 0 and 1 from here on

  // sigmoid(2 k (x + q x^3)). The argument is in double: the exponential magnifies its rounding.
  __device__ static T gate(T x) {
    const T a = std::abs(x);
    const double w = a > kFlat ? kFlat : a;
    const double minus = w * (-2 * kScale - 2 * kScale * kCubic * (w * w));
    const T high = T(minus), e = exponential(high, T(minus - high));
    return (x >= T(0) ? T(1) : e) / (T(1) + e);
  }
  __device__ static T forward(T x, const Params<T>&) { return x * gate(x); }
  __device__ static T backward(T s, T dy, const Params<T>&) {
    const T g = gate(s), x = between<T>(s, -11, 11);  // beyond, the second term is 0
    const T slope = T(2 * kScale) + T(6 * kScale * kCubic) * x * x;
    return dy * (g + x * g * (T(1) - g) * slope);
  }
};

// ---- arithmetic ----

CONVGRAD_UNARY(Exp, exponential(x), (s * dy));
CONVGRAD_UNARY(Expm1, std::expm1(x), (s + T(1)) * dy);
CONVGRAD_UNARY(Log, std::log(x), dy / s);
CONVGRAD_UNARY(Log1p, std::log1p(x), dy / (s + T(1)));
CONVGRAD_UNARY(Erf, std::erf(x),
               T(1.1283791670955126) * bell(T(1.4142135623730951) * std::abs(s)) * dy);
CONVGRAD_UNARY(Sqrt, std::sqrt(x), dy / (T(2) * s));
CONVGRAD_UNARY(Rsqrt, T(1) / std::sqrt(x), T(-0.5) * s * s * s * dy);
CONVGRAD_UNARY(Reciprocal, T(1) / x, -(s * s * dy));
CONVGRAD_UNARY(Square, (x * x), T(2) * s * dy);
CONVGRAD_UNARY(Abs, std::abs(x), s > T(0) ? dy : s < T(0) ? -dy : dy * s);  // at 0: 0
CONVGRAD_UNARY(Neg, -x, -dy);

// ---- the kernels: packs where addresses allow, and single elements ----

constexpr int kThreads = 256;

template <class F, class T>
__device__ void forward_all(const Params<Acc<T>>& p, int64_t n, int64_t packs, const T* x, T* y) {
  constexpr int W = kPack<T>;
  for (int64_t i = thread_index(); i < packs; i += thread_count()) {
    Acc<T> v[W];
    load_values<W>(x + i * W, v);
#pragma unroll
    for (int j = 0; j < W; ++j) v[j] = F::forward(v[j], p);
    store_values<W>(y + i * W, v);
  }
  for (int64_t i = packs * W + thread_index(); i < n; i += thread_count())
    y[i] = T(F::forward(Acc<T>(x[i]), p));
}

template <class F, class T>
__device__ void backward_all(const Params<Acc<T>>& p, int64_t n, int64_t packs, const T* s,
                             const T* dy, T* dx) {
  constexpr int W = kPack<T>;
  for (int64_t i = thread_index(); i < packs; i += thread_count()) {
    Acc<T> saved[W], g[W];
    load_values<W>(s + i * W, saved);
    load_values<W>(dy + i * W, g);
#pragma unroll
    for (int j = 0; j < W; ++j) g[j] = F::backward(saved[j], g[j], p);
    store_values<W>(dx + i * W, g);
  }
  for (int64_t i = packs * W + thread_index(); i < n; i += thread_count())
    dx[i] = T(F::backward(Acc<T>(s[i]), Acc<T>(dy[i]), p));
}

template <class F, class T>
__global__ void __launch_bounds__(kThreads, 4)
    forward_kernel(Params<Acc<T>> p, int64_t n, int64_t packs, const T* x, T* y) {
  forward_all<F>(p, n, packs, x, y);
}
template <class F, class T>
__global__ void __launch_bounds__(kThreads, 4)
    backward_kernel(Params<Acc<T>> p, int64_t n, int64_t packs, const T* s, const T* dy, T* dx) {
  backward_all<F>(p, n, packs, s, dy, dx);
}

// All functions in one kernel, for types of 16 bits: a branch costs less than a hundred kernels.
template <class T>
__global__ void __launch_bounds__(kThreads, 4)
    any_forward_kernel(Unary kind, Params<Acc<T>> p, int64_t n, int64_t packs, const T* x, T* y) {
  switch (kind) {
#define CONVGRAD_CASE(F, name) \
  case Unary::k##F:            \
    return forward_all<F<Acc<T>>>(p, n, packs, x, y);
    CONVGRAD_UNARIES(CONVGRAD_CASE)
#undef CONVGRAD_CASE
  }
}
template <class T>
__global__ void __launch_bounds__(kThreads, 4)
    any_backward_kernel(Unary kind, Params<Acc<T>> p, int64_t n, int64_t packs, const T* s,
                        const T* dy, T* dx) {
  switch (kind) {
#define CONVGRAD_CASE(F, name) \
  case Unary::k##F:            \
    return backward_all<F<Acc<T>>>(p, n, packs, s, dy, dx);
    CONVGRAD_UNARIES(CONVGRAD_CASE)
#undef CONVGRAD_CASE
  }
}

template <class T>
void unary_forward(const Exec& exec, Unary kind, const UnaryParams& params, int64_t n, const T* x,
                   T* y) {
  const Params<Acc<T>> p{Acc<T>(params.a), Acc<T>(params.b)};
  const int64_t packs = are_packs<T>(0, x, y) ? n / kPack<T> : 0;
  const dim3 grid = grid_for(packs ? packs : n, kThreads);
  if constexpr (sizeof(T) == 2) {
    launch(exec, any_forward_kernel<T>, grid, dim3(kThreads), 0, kind, p, n, packs, x, y);
  } else {
    switch (kind) {
#define CONVGRAD_CASE(F, name) \
  case Unary::k##F:            \
    return launch(exec, forward_kernel<F<T>, T>, grid, dim3(kThreads), 0, p, n, packs, x, y);
      CONVGRAD_UNARIES(CONVGRAD_CASE)
#undef CONVGRAD_CASE
    }
  }
}

template <class T>
void unary_backward(const Exec& exec, Unary kind, const UnaryParams& params, int64_t n, const T* s,
                    const T* dy, T* dx) {
  const Params<Acc<T>> p{Acc<T>(params.a), Acc<T>(params.b)};
  const int64_t packs = are_packs<T>(0, s, dy, dx) ? n / kPack<T> : 0;
  const dim3 grid = grid_for(packs ? packs : n, kThreads);
  if constexpr (sizeof(T) == 2) {
    launch(exec, any_backward_kernel<T>, grid, dim3(kThreads), 0, kind, p, n, packs, s, dy, dx);
  } else {
    switch (kind) {
#define CONVGRAD_CASE(F, name) \
  case Unary::k##F:            \
    return launch(exec, backward_kernel<F<T>, T>, grid, dim3(kThreads), 0, p, n, packs, s, dy, dx);
      CONVGRAD_UNARIES(CONVGRAD_CASE)
#undef CONVGRAD_CASE
    }
  }
}

template <class T>
void add(Ops<T>& table) {
  table.unary_forward = unary_forward<T>;
  table.unary_backward = unary_backward<T>;
}

}  // namespace

CONVGRAD_STEM(activation)

}  // namespace convgrad::cuda
