// Soft Dice loss: softmax over classes, or a sigmoid per element.
#include <limits>

#include "cuda/kernels/columns.cuh"
#include "cuda/kernels/loss_sum.cuh"
#include "cuda/kernels/math.cuh"
#include "cuda/kernels/rows.cuh"

namespace convgrad::cuda {
namespace {

// Sums of p t, p and t per sample and channel. p is there already for classes, and is written here
// for a mask.
template <class T, bool kClasses>
struct DiceTerms {
  static constexpr int kSums = 3;
  const T* x;
  const int64_t* classes;
  const T* mask;
  T* p;
  ValueError* errors;
  const char* op;

  struct Nothing {};
  template <int kV, bool kPacked>
  __device__ Nothing columns(const ColumnPlan&, const ColumnPlace&) const {
    return {};
  }

  // The target of channels channel, channel + 1, ... of a pixel: NaN for a class out of range.
  template <bool kPacked, int kV>
  __device__ Pack<T, kV> target(const ColumnPlan& plan, int64_t pixel, int64_t channel) const {
    if constexpr (!kClasses) {
      return load_columns<kV, kPacked>(mask + pixel * plan.c + channel);
    } else {
      const int64_t y = classes[pixel];
      const bool inside = y >= 0 && y < plan.c;
      if (!inside && channel == 0) report(errors, op, y, 0, plan.c);
      Pack<T, kV> t;
      for (int v = 0; v < kV; ++v)
        t[v] = T(inside ? Acc<T>(y == channel + v) : std::numeric_limits<Acc<T>>::quiet_NaN());
      return t;
    }
  }
  template <bool kPacked, int kV>
  __device__ Pack<T, kV> probability(int64_t at) const {
    if constexpr (kClasses) {
      return load_columns<kV, kPacked>(p + at);
    } else {
      Pack<T, kV> q = load_columns<kV, kPacked>(x + at);
#pragma unroll
      for (int v = 0; v < kV; ++v) q[v] = T(sigmoid(Acc<T>(q[v])));
      store_columns<kV, kPacked>(p + at, q);
      return q;
    }
  }

  template <bool kPacked, int kCount, int kV>
  __device__ void add(const ColumnPlan& plan, const ColumnPlace& place, Nothing, int64_t row,
                      double (&total)[3][kV]) const {
    using A = Acc<T>;
    A sum[3][kV] = {};
#pragma unroll 2
    for (int r = 0; r < kCount; ++r) {
      const int64_t pixel = place.batch * plan.rows + row + int64_t{r} * plan.height;
      const Pack<T, kV> q = probability<kPacked, kV>(pixel * plan.c + place.channel);
      const Pack<T, kV> t = target<kPacked, kV>(plan, pixel, place.channel);
#pragma unroll
      for (int v = 0; v < kV; ++v) {
        sum[0][v] += A(q[v]) * A(t[v]);
        sum[1][v] += A(q[v]);
        sum[2][v] += A(t[v]);
      }
    }
    for (int n = 0; n < 3; ++n)
      for (int v = 0; v < kV; ++v) total[n][v] += double(sum[n][v]);
  }

  __device__ void finish(Nothing, int, double, double (&)[3]) const {}
};

// A block per sample and channel: 1 - Dice for the loss, and dp, the slopes of the loss in p.
template <int kThreads, class A>
__global__ void __launch_bounds__(kThreads)
    dice_channels(ColumnPlan plan, double smooth, const double* parts, LossSum* terms, A* dp) {
  auto& scratch = shared<TotalScratch<kThreads>>();
  const double* part = parts + int64_t(blockIdx.x) * plan.blocks * 3;
  double total[3] = {};
  for (int i = int(threadIdx.x); i < plan.blocks; i += kThreads)
    for (int n = 0; n < 3; ++n) total[n] += part[3 * i + n];
  for (int n = 0; n < 3; ++n)
    total[n] = block_reduce<kThreads>(total[n], scratch.sums, Plus<double>{});
  if (threadIdx.x != 0) return;
  const double top = 2 * total[0] + smooth, bottom = total[1] + total[2] + smooth;
  const double share = 1 / double(plan.batches * plan.c);
  terms[blockIdx.x] = {1 - top / bottom, 1};
  dp[2 * blockIdx.x] = A(share * top / (bottom * bottom));
  dp[2 * blockIdx.x + 1] = A(-share * 2 / bottom);
}

template <class T>
ColumnPlan dice_plan(const DiceShape& s) {
  return column_plan<T>(s.n, s.pixels, s.c);
}

template <class T>
int64_t dice_workspace(const DiceShape& s, int) {
  return column_parts(dice_plan<T>(s), 3) * int64_t{sizeof(double)} +
         s.n * s.c * int64_t{sizeof(LossSum)};
}

template <class T>
void dice_forward(const Exec& exec, const DiceShape& s, const T* x, const int64_t* classes,
                  const T* mask, Stat<T>* loss, T* p, Stat<T>* dp, int64_t* bad_row) {
  *bad_row = -1;  // the device reports one by exec.errors
  const ColumnPlan plan = dice_plan<T>(s);
  double* parts = static_cast<double*>(exec.workspace);
  LossSum* terms = reinterpret_cast<LossSum*>(parts + column_parts(plan, 3));
  if (classes) {
    ops<T>().softmax_forward(exec, false, s.n * s.pixels, s.c, 1, x, p);
    sum_columns<T>(exec, plan, aligned(p),
                   DiceTerms<T, true>{x, classes, nullptr, p, exec.errors, exec.op}, parts);
  } else {
    sum_columns<T>(exec, plan, aligned(x, mask, p),
                   DiceTerms<T, false>{x, nullptr, mask, p, nullptr, nullptr}, parts);
  }
  with_total_threads(plan.blocks, [&](auto threads) {
    launch(exec, dice_channels<threads.value, Stat<T>>, dim3(unsigned(s.n * s.c)),
           dim3(threads.value), sizeof(TotalScratch<threads.value>), plan, s.smooth, parts, terms,
           dp);
  });
  const LossOutput<Stat<T>> out{Reduction::kMean, terms, loss, nullptr};
  launch(exec, add_parts<Stat<T>>, dim3(1), dim3(kLossThreads), sizeof(LossScratch), out,
         s.n * s.c);
}

template <class T, int kLanes>
__global__ void __launch_bounds__(kRowThreads)
    dice_backward_kernel(DiceShape s, const int64_t* classes, const T* mask, const T* p,
                         const Acc<T>* dp, const Acc<T>* dy, T* dx) {
  using A = Acc<T>;
  RowScratch<A>& scratch = shared<RowScratch<A>>();
  const Team<kLanes> team;
  team.for_rows(s.n * s.pixels, [&](int64_t pixel, bool valid) {
    const int64_t first = pixel * s.c;
    const A* slopes = dp + pixel / s.pixels * s.c * 2;
    const A up = *dy;
    const auto slope = [&](int64_t k) {  // of the loss in p
      const A t = mask ? A(mask[first + k]) : A(k == classes[pixel]);
      return up * (slopes[2 * k] + slopes[2 * k + 1] * t);
    };
    A mean = 0;  // of the slopes under p
    if (!mask) {
      for (int64_t k = team.lane(); k < s.c; k += kLanes) mean += slope(k) * A(p[first + k]);
      mean = team.reduce(mean, scratch.values, Plus<A>{});
    }
    if (!valid) return;
    for (int64_t k = team.lane(); k < s.c; k += kLanes) {
      const A q = A(p[first + k]);
      dx[first + k] = T(q * (mask ? slope(k) * (1 - q) : slope(k) - mean));
    }
  });
}

template <class T>
void dice_backward(const Exec& exec, const DiceShape& s, const int64_t* classes, const T* mask,
                   const T* p, const Stat<T>* dp, const Stat<T>* dy, T* dx) {
  const int64_t rows = s.n * s.pixels;
  if (rows == 0) return;
  with_team(s.c, [&](auto team) {
    launch(exec, dice_backward_kernel<T, team.value>, dim3(unsigned(row_blocks(rows, team.value))),
           dim3(kRowThreads), sizeof(RowScratch<Acc<T>>), s, classes, mask, p, dp, dy, dx);
  });
}

template <class T>
void add(Ops<T>& table) {
  table.dice_workspace = dice_workspace<T>;
  table.dice_forward = dice_forward<T>;
  table.dice_backward = dice_backward<T>;
}

}  // namespace

CONVGRAD_STEM(loss_dice)

}  // namespace convgrad::cuda
