// Optimizer steps over lists of parameters, in one pass each, and sums over such lists.
#include <cmath>

#include "parallel.h"
#include "vec.h"

namespace convgrad::cpu {
namespace {

// Pieces of kGrain elements of all tensors, numbered through; the list is short enough to search.
template <class T>
int64_t piece_count(int64_t count, const ParamRef<T>* list) {
  int64_t pieces = 0;
  for (int64_t i = 0; i < count; ++i) pieces += ceil_div(list[i].n, kGrain);
  return pieces;
}

// body(tensor, begin, end, piece) for every piece; `cost` is the work per element.
template <class T, class Body>
void for_pieces(const Exec& exec, int64_t count, const ParamRef<T>* list, int64_t cost,
                const Body& body) {
  int64_t total = 0;
  for (int64_t i = 0; i < count; ++i) total += list[i].n;
  parallel_for(exec, piece_count(count, list), total * cost, [&](int64_t piece, int) {
    int64_t local = piece;
    const ParamRef<T>* tensor = list;
    for (; local >= ceil_div(tensor->n, kGrain); ++tensor) local -= ceil_div(tensor->n, kGrain);
    const int64_t begin = local * kGrain;
    body(*tensor, begin, min_of(begin + kGrain, tensor->n), piece);
  });
}

// ---- steps ----

template <class T, bool kMomentum>
void sgd_piece(const ParamRef<T>& r, int64_t begin, int64_t end, bool nesterov,
               const double* hyper) {
  const T lr = T(hyper[0]), momentum = T(hyper[1]), decay = T(hyper[3]);
  // At first the buffer becomes d itself.
  const T old = r.first ? T(0) : momentum, fresh = r.first ? T(1) : T(1 - hyper[2]);
  T* __restrict p = r.p;
  const T* __restrict g = r.g;
  T* __restrict v = r.kept[0];
  if (kMomentum && r.first)
    for (int64_t i = begin; i < end; ++i) v[i] = 0;
  for (int64_t i = begin; i < end; ++i) {
    T d = g[i] + decay * p[i];
    if (kMomentum) {
      v[i] = old * v[i] + fresh * d;
      d = nesterov ? d + momentum * v[i] : v[i];
    }
    p[i] -= lr * d;
  }
}

template <class T>
void sgd_step(const Exec& exec, int64_t count, const ParamRef<T>* params, bool nesterov,
              const double* hyper) {
  if (exec.skip && *exec.skip != 0) return;
  for_pieces(exec, count, params, 2,
             [&](const ParamRef<T>& r, int64_t begin, int64_t end, int64_t) {
               if (hyper[1] == 0)
                 sgd_piece<T, false>(r, begin, end, false, hyper);
               else
                 sgd_piece<T, true>(r, begin, end, nesterov, hyper);
             });
}

template <class T, bool kAmsgrad, bool kDecoupled>
void adam_piece(const ParamRef<T>& r, int64_t begin, int64_t end, const double* hyper) {
  const double lr = hyper[0], decay = hyper[4];
  const T beta1 = T(hyper[1]), beta2 = T(hyper[2]), eps = T(hyper[3]);
  const T new1 = T(1 - hyper[1]), new2 = T(1 - hyper[2]);
  const T step = T(lr / (1 - std::pow(hyper[1], *r.step)));
  const T root = T(1 / std::sqrt(1 - std::pow(hyper[2], *r.step)));
  const T shrink = T(1 - lr * decay), add = T(decay);
  T* __restrict p = r.p;
  const T* __restrict g = r.g;
  T* __restrict m = r.kept[0], * __restrict v = r.kept[1], * __restrict top = r.kept[2];
  for (int64_t i = begin; i < end; ++i) {
    const T before = kDecoupled ? p[i] * shrink : p[i];
    const T d = kDecoupled ? g[i] : g[i] + add * p[i];
    m[i] = beta1 * m[i] + new1 * d;
    v[i] = beta2 * v[i] + new2 * d * d;
    T square = v[i];
    // NaN wins, as in PyTorch: a NaN gradient must show.
    if (kAmsgrad) square = top[i] = square <= top[i] ? top[i] : square;
    p[i] = before - step * m[i] / (std::sqrt(square) * root + eps);
  }
}

template <class T>
void adam_step(const Exec& exec, int64_t count, const ParamRef<T>* params, bool amsgrad,
               bool decoupled, const double* hyper) {
  if (exec.skip && *exec.skip != 0) return;
  for (int64_t i = 0; i < count; ++i) *params[i].step += 1;
  const auto piece = amsgrad
                         ? (decoupled ? adam_piece<T, true, true> : adam_piece<T, true, false>)
                         : (decoupled ? adam_piece<T, false, true> : adam_piece<T, false, false>);
  for_pieces(exec, count, params, 6,
             [&](const ParamRef<T>& r, int64_t begin, int64_t end, int64_t) {
               piece(r, begin, end, hyper);
             });
}

// ---- sums over lists ----

template <class T>
int64_t list_norm_workspace(int64_t count, const ParamRef<T>* list) {
  return piece_count(count, list) * int64_t{sizeof(double)};
}

// Four running values, so that additions need not wait for each other.
template <class T, class Term, class Join>
double fold(const T* p, int64_t begin, int64_t end, const Term& term, const Join& join) {
  double part[4] = {0, 0, 0, 0};
  int64_t i = begin;
  for (; i + 4 <= end; i += 4)
    for (int k = 0; k < 4; ++k) part[k] = join(part[k], term(double(p[i + k])));
  for (; i < end; ++i) part[0] = join(part[0], term(double(p[i])));
  return join(join(part[0], part[1]), join(part[2], part[3]));
}

double add_up(double a, double b) { return a + b; }
double larger(double a, double b) { return b <= a ? a : (a != a ? a : b); }  // NaN wins
double absolute(double x) { return std::fabs(x); }
double square(double x) { return x * x; }

template <class T>
double piece_norm(const T* p, int64_t begin, int64_t end, NormKind kind, double power) {
  switch (kind) {
    case NormKind::kAbsSum:
      return fold(p, begin, end, absolute, add_up);
    case NormKind::kSquareSum:
      return fold(p, begin, end, square, add_up);
    case NormKind::kAbsMax:
      return fold(p, begin, end, absolute, larger);
    default:
      return fold(p, begin, end, [&](double x) { return std::pow(std::fabs(x), power); }, add_up);
  }
}

template <class T>
void list_norm(const Exec& exec, int64_t count, const ParamRef<T>* list, NormKind kind,
               double power, double* out) {
  double* part = static_cast<double*>(exec.workspace);
  for_pieces(exec, count, list, kind == NormKind::kPowerSum ? 32 : 1,
             [&](const ParamRef<T>& r, int64_t begin, int64_t end, int64_t piece) {
               part[piece] = piece_norm(r.p, begin, end, kind, power);
             });
  double sum = 0;
  const int64_t pieces = piece_count(count, list);
  for (int64_t i = 0; i < pieces; ++i)
    sum = kind == NormKind::kAbsMax ? larger(sum, part[i]) : sum + part[i];
  *out = sum;
}

template <class T>
void list_scale(const Exec& exec, int64_t count, const ParamRef<T>* list, const double* factor) {
  const T f = T(*factor);
  for_pieces(exec, count, list, 1, [&](const ParamRef<T>& r, int64_t begin, int64_t end, int64_t) {
    for (int64_t i = begin; i < end; ++i) r.p[i] *= f;
  });
}

template <class T>
void penalty_backward(const Exec& exec, int64_t n, const T* p, NormKind kind, double factor,
                      const T* dy, T* dp) {
  const bool absolute = kind == NormKind::kAbsSum;
  const T scale = T((absolute ? factor : 2 * factor) * double(*dy));
  parallel_ranges(exec, n, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      // The sign; a NaN stays one, and zero has slope zero.
      const T slope = !absolute ? p[i] : p[i] > 0 ? T(1) : p[i] < 0 ? T(-1) : p[i];
      dp[i] = scale * slope;
    }
  });
}

template <class T>
void add(Ops<T>& table) {
  table.sgd_step = sgd_step<T>;
  table.adam_step = adam_step<T>;
  table.list_norm_workspace = list_norm_workspace<T>;
  table.list_norm = list_norm<T>;
  table.list_scale = list_scale<T>;
  table.penalty_backward = penalty_backward<T>;
}

}  // namespace

namespace CONVGRAD_ISA {
void add_optim(Ops<float>& table) { add(table); }
void add_optim(Ops<double>& table) { add(table); }
}  // namespace CONVGRAD_ISA
}  // namespace convgrad::cpu
