// Cross-entropy of logits or log-probabilities (rows, c), a team of threads per row.
#include <cmath>
#include <limits>

#include "cuda/kernels/loss_sum.cuh"
#include "cuda/kernels/rows.cuh"

namespace convgrad::cuda {
namespace {

static_assert(kLossThreads == kRowThreads);

// The target of one row as a distribution over classes, weights included:
// q[c] = weight[c] ((1 - smoothing) target[c] + smoothing / C).
template <class T>
struct Target {
  CrossEntropyShape s;
  const int64_t* classes;
  const T* probs;
  const Stat<T>* weight;
  Acc<T> keep = Acc<T>(1 - s.label_smoothing), spread = Acc<T>(s.label_smoothing / double(s.c));

  __device__ Acc<T> weight_of(int64_t c) const { return weight ? weight[c] : Acc<T>(1); }
  // One class holds everything.
  __device__ bool sparse() const { return classes && spread == 0; }
  __device__ Acc<T> at(int64_t row, int64_t c) const {
    const Acc<T> t = probs ? Acc<T>(probs[row * s.c + c]) : Acc<T>(c == classes[row]);
    return weight_of(c) * (keep * t + spread);
  }
  __device__ int64_t class_of(int64_t row) const { return classes ? classes[row] : 0; }
  __device__ bool ignores(int64_t y) const { return classes && y == s.ignore_index; }
  __device__ bool inside(int64_t y) const { return y >= 0 && y < s.c; }
};

// A NaN may be passed over by the maximum: it shows in the sum of exponentials.
template <class T>
struct Larger {
  __device__ T operator()(T a, T b) const { return b > a ? b : a; }
};

// The maximum of a row and its sum of exp(x - maximum).
template <class A>
struct RowStats {
  A top, sum;
};
template <class T, int kLanes>
__device__ RowStats<Acc<T>> row_stats(const Team<kLanes>& team, int64_t c, const T* x,
                                      RowScratch<Acc<T>>& scratch) {
  using A = Acc<T>;
  A top = -std::numeric_limits<A>::infinity(), sum = 0;
  for (int64_t i = team.lane(); i < c; i += kLanes) top = Larger<A>{}(top, A(x[i]));
  top = team.reduce(top, scratch.values, Larger<A>{});
  for (int64_t i = team.lane(); i < c; i += kLanes) sum += std::exp(A(x[i]) - top);
  return {top, team.reduce(sum, scratch.values, Plus<A>{})};
}

// -sum of q[c] log p[c]; log p = x - top - log_sum. NaN for a class outside its range.
template <class T, int kLanes>
__device__ Acc<T> row_loss(const Team<kLanes>& team, const Target<T>& target, int64_t row,
                           const T* x, Acc<T> top, Acc<T> log_sum, RowScratch<Acc<T>>& scratch) {
  using A = Acc<T>;
  const int64_t y = target.class_of(row);
  const bool inside = target.inside(y);
  if (target.sparse())
    return inside ? target.weight_of(y) * (log_sum - (A(x[y]) - top))
                  : std::numeric_limits<A>::quiet_NaN();
  double loss = 0;
  for (int64_t c = team.lane(); c < target.s.c; c += kLanes)
    loss += double(target.at(row, c) * (log_sum - (A(x[c]) - top)));
  loss = team.reduce(loss, scratch.sums, Plus<double>{});
  return inside ? A(loss) : std::numeric_limits<A>::quiet_NaN();
}

template <class T, int kLanes>
__global__ void __launch_bounds__(kRowThreads)
    forward_kernel(Target<T> target, const T* x, Acc<T>* stats, LossOutput<Acc<T>> out,
                   ValueError* errors, const char* op) {
  using A = Acc<T>;
  RowScratch<A>& scratch = shared<RowScratch<A>>();
  const CrossEntropyShape& s = target.s;
  const Team<kLanes> team;
  LossSum sum;
  team.for_rows(s.rows, [&](int64_t row, bool valid) {
    RowStats<A> row_stat{0, 1};  // what leaves log-probabilities as they are
    if (!s.log_probs) row_stat = row_stats(team, s.c, x + row * s.c, scratch);
    A value =
        row_loss(team, target, row, x + row * s.c, row_stat.top, std::log(row_stat.sum), scratch);
    if (!valid || team.lane() != 0) return;
    if (!s.log_probs) {
      stats[2 * row] = row_stat.top;
      stats[2 * row + 1] = row_stat.sum;
    }
    const int64_t y = target.class_of(row);
    if (target.ignores(y)) {
      value = 0;
    } else if (target.inside(y)) {
      sum.weight += target.classes ? double(target.weight_of(y)) : 1;
    } else {
      report(errors, op, y, 0, s.c);
    }
    sum.loss += double(value);
    if (s.reduction == Reduction::kNone) out.loss[row] = value;
  });
  add_up(out, sum, scratch.sums);
}

template <class T, int kLanes>
__global__ void __launch_bounds__(kRowThreads)
    backward_kernel(Target<T> target, const T* x, const Acc<T>* stats, const Acc<T>* norm,
                    const Acc<T>* dy, T* dx, T* dprobs) {
  using A = Acc<T>;
  RowScratch<A>& scratch = shared<RowScratch<A>>();
  const CrossEntropyShape& s = target.s;
  const Team<kLanes> team;
  team.for_rows(s.rows, [&](int64_t row, bool valid) {
    const int64_t y = target.class_of(row), first = row * s.c;
    const bool counts = !target.ignores(y) && target.inside(y);
    const A scale = s.reduction == Reduction::kNone ? dy[row] : dy[0] / *norm;
    A total = 0;  // of scale q
    if (!target.sparse()) {
      double sum = 0;
      for (int64_t c = team.lane(); c < s.c; c += kLanes) sum += double(target.at(row, c));
      total = scale * A(team.reduce(sum, scratch.sums, Plus<double>{}));
    } else if (counts) {
      total = scale * target.weight_of(y);
    }
    if (!valid) return;
    const A top = s.log_probs ? A(0) : stats[2 * row];
    const A sum = s.log_probs ? A(1) : stats[2 * row + 1];
    const A inverse = A(1) / sum, log_sum = std::log(sum);
    for (int64_t c = team.lane(); c < s.c; c += kLanes) {
      const A shifted = A(x[first + c]) - top;
      const A p = s.log_probs ? A(0) : std::exp(shifted) * inverse * total;
      const A q = !target.sparse() ? scale * target.at(row, c) : c == y ? total : A(0);
      dx[first + c] = T(counts ? p - q : A(0));
      if (dprobs)
        dprobs[first + c] = T(scale * target.keep * target.weight_of(c) * (log_sum - shifted));
    }
  });
}

int64_t cross_entropy_workspace(const CrossEntropyShape& s, int) {
  int64_t blocks = 0;
  with_team(s.c, [&](auto team) { blocks = row_blocks(s.rows, team.value); });
  return blocks * int64_t{sizeof(LossSum)};
}

template <class T>
void cross_entropy_forward(const Exec& exec, const CrossEntropyShape& s, const T* x,
                           const int64_t* classes, const T* probs, const Stat<T>* weight,
                           Stat<T>* loss, Stat<T>* stats, Stat<T>* norm, int64_t* bad_row) {
  *bad_row = -1;  // the device reports one by exec.errors
  const LossOutput<Stat<T>> out{s.reduction, static_cast<LossSum*>(exec.workspace), loss, norm};
  with_team(s.c, [&](auto team) {
    const int64_t blocks = row_blocks(s.rows, team.value);
    launch(exec, forward_kernel<T, team.value>, dim3(unsigned(blocks)), dim3(kRowThreads),
           sizeof(RowScratch<Acc<T>>), Target<T>{s, classes, probs, weight}, x, stats, out,
           exec.errors, exec.op);
    finish_loss(exec, out, blocks);
  });
}

template <class T>
void cross_entropy_backward(const Exec& exec, const CrossEntropyShape& s, const T* x,
                            const int64_t* classes, const T* probs, const Stat<T>* weight,
                            const Stat<T>* stats, const Stat<T>* norm, const Stat<T>* dy, T* dx,
                            T* dprobs) {
  if (s.rows == 0) return;
  with_team(s.c, [&](auto team) {
    launch(exec, backward_kernel<T, team.value>, dim3(unsigned(row_blocks(s.rows, team.value))),
           dim3(kRowThreads), sizeof(RowScratch<Acc<T>>), Target<T>{s, classes, probs, weight}, x,
           stats, norm, dy, dx, dprobs);
  });
}

template <class T>
void add(Ops<T>& table) {
  table.cross_entropy_workspace = cross_entropy_workspace;
  table.cross_entropy_forward = cross_entropy_forward<T>;
  table.cross_entropy_backward = cross_entropy_backward<T>;
}

}  // namespace

CONVGRAD_STEM(loss)

}  // namespace convgrad::cuda
