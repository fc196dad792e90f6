// Optimizer steps over lists of parameters, one launch for all of a list, and sums over such lists.
//
// The list goes to the kernel in its parameters. It is cut into pieces of kPiece elements, numbered
// through, a block each: large tensors get many blocks, small ones one.
#include <cmath>

#include "cuda/launch.cuh"

namespace convgrad::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kPiece = 4096;
constexpr int kFewParams = 48, kManyParams = 470;  // 32,764 bytes of parameters per launch

template <class T, int kMax>
struct ParamList {
  int count, first_piece[kMax];  // of each tensor
  ParamRef<T> param[kMax];
};
static_assert(sizeof(ParamList<float, kManyParams>) <= 32'600);

inline int64_t pieces_of(int64_t n) { return ceil_div(n, kPiece); }

template <class T>
int64_t piece_count(int64_t count, const ParamRef<T>* list) {
  int64_t pieces = 0;
  for (int64_t i = 0; i < count; ++i) pieces += pieces_of(list[i].n);
  return pieces;
}

// What a block works on: elements [begin, end) of a tensor.
template <class T>
struct Piece {
  const ParamRef<T>& param;
  int64_t begin, end;

  template <int kMax>
  __device__ explicit Piece(const ParamList<T, kMax>& list) : param(list.param[find(list)]) {
    begin = (int(blockIdx.x) - list.first_piece[&param - list.param]) * kPiece;
    end = param.n < begin + kPiece ? param.n : begin + kPiece;
  }

  // The last tensor that begins at or before this block's piece; empty ones have no piece, and
  // come before the one that begins where they do.
  template <int kMax>
  __device__ static int find(const ParamList<T, kMax>& list) {
    int low = 0, high = list.count;
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (list.first_piece[middle] <= int(blockIdx.x) ? low : high) = middle;
    }
    return low;
  }

  // body(i) for the first elements of this thread's packs.
  template <class Body>
  __device__ void for_packs(const Body& body) const {
    for (int64_t i = begin + int(threadIdx.x) * kPack<T>; i < end; i += kThreads * kPack<T>)
      body(i);
  }
};

// Runs fn(list, pieces, first) with the tensors in as few lists as the parameters hold, `pieces`
// of them each and `first` before it.
template <int kMax, class T, class Fn>
void for_lists_of(int64_t count, const ParamRef<T>* params, const Fn& fn) {
  int64_t first = 0;
  for (int64_t begin = 0; begin < count; begin += kMax) {
    ParamList<T, kMax> list;
    list.count = int(std::min<int64_t>(kMax, count - begin));
    int64_t pieces = 0;
    for (int i = 0; i < list.count; ++i) {
      list.param[i] = params[begin + i];
      list.first_piece[i] = int(pieces);
      pieces += pieces_of(list.param[i].n);
    }
    fn(list, pieces, first);
    first += pieces;
  }
}
template <class T, class Fn>
void for_lists(int64_t count, const ParamRef<T>* params, const Fn& fn) {
  count <= kFewParams ? for_lists_of<kFewParams>(count, params, fn)
                      : for_lists_of<kManyParams>(count, params, fn);
}

// ---- steps ----

__device__ bool is_set(const double* skip) { return skip && *skip != 0; }

template <class T>
struct SgdRates {
  T lr, momentum, decay, old, fresh;
  bool has_momentum;

  __device__ SgdRates(const double* hyper, bool first)
      : lr(T(hyper[0])),
        momentum(T(hyper[1])),
        decay(T(hyper[3])),
        // At first the buffer becomes d itself.
        old(first ? T(0) : momentum),
        fresh(first ? T(1) : T(1 - hyper[2])),
        has_momentum(hyper[1] != 0) {}
};

template <class T, int kMax>
__global__ void __launch_bounds__(kThreads)
    sgd_kernel(const __grid_constant__ ParamList<T, kMax> list, bool nesterov, const double* hyper,
               const double* skip) {
  if (is_set(skip)) return;
  constexpr int N = kPack<T>;
  const Piece<T> piece(list);
  const ParamRef<T>& r = piece.param;
  using A = Acc<T>;
  const SgdRates<A> rate(hyper, r.first);
  const bool packed = aligned(r.p, r.g, r.kept[0]), reads = rate.has_momentum && !r.first;
  piece.for_packs([&](int64_t i) {
    Pack<T, N> p = load_some<N>(r.p, i, piece.end, packed);
    const Pack<T, N> g = load_some<N>(r.g, i, piece.end, packed);
    Pack<T, N> v{};
    if (reads) v = load_some<N>(r.kept[0], i, piece.end, packed);
    for (int k = 0; k < N; ++k) {
      A d = A(g[k]) + rate.decay * A(p[k]);
      if (rate.has_momentum) {
        const A kept = rate.old * A(v[k]) + rate.fresh * d;
        v[k] = T(kept);
        d = nesterov ? d + rate.momentum * kept : kept;
      }
      p[k] = T(A(p[k]) - rate.lr * d);
    }
    if (rate.has_momentum) store_some(r.kept[0], i, piece.end, packed, v);
    store_some(r.p, i, piece.end, packed, p);
  });
}

template <class T>
void sgd_step(const Exec& exec, int64_t count, const ParamRef<T>* params, bool nesterov,
              const double* hyper) {
  for_lists(count, params, [&](const auto& list, int64_t pieces, int64_t) {
    launch(exec, sgd_kernel<T, std::size(decltype(list.param){})>, dim3(unsigned(pieces)),
           dim3(kThreads), 0, list, nesterov, hyper, exec.skip);
  });
}

// Adam's factors after a number of steps, for a block; powers are dear, and two of its warps take
// one each.
template <class T>
struct AdamRates {
  T beta1, beta2, new1, new2, eps, step, root, shrink, add;

  __device__ void set(const double* hyper, double steps) {
    if (threadIdx.x == kWarp) root = T(1 / std::sqrt(1 - std::pow(hyper[2], steps)));
    if (threadIdx.x != 0) return;
    beta1 = T(hyper[1]);
    beta2 = T(hyper[2]);
    new1 = T(1 - hyper[1]);
    new2 = T(1 - hyper[2]);
    eps = T(hyper[3]);
    step = T(hyper[0] / (1 - std::pow(hyper[1], steps)));
    shrink = T(1 - hyper[0] * hyper[4]);
    add = T(hyper[4]);
  }
};

template <class T, int kMax>
__global__ void __launch_bounds__(kThreads)
    count_steps(const __grid_constant__ ParamList<T, kMax> list, const double* skip) {
  if (is_set(skip)) return;
  for (int i = int(threadIdx.x); i < list.count; i += kThreads) *list.param[i].step += 1;
}

template <class T, bool kAmsgrad, bool kDecoupled, int kMax>
__global__ void __launch_bounds__(kThreads)
    adam_kernel(const __grid_constant__ ParamList<T, kMax> list, const double* hyper,
                const double* skip) {
  if (is_set(skip)) return;
  constexpr int N = kPack<T>;
  using A = Acc<T>;
  AdamRates<A>& shared_rates = shared<AdamRates<A>>();
  const Piece<T> piece(list);
  const ParamRef<T>& r = piece.param;
  shared_rates.set(hyper, *r.step);
  __syncthreads();
  const AdamRates<A> rate = shared_rates;
  const bool packed = aligned(r.p, r.g, r.kept[0], r.kept[1], r.kept[2]);
  piece.for_packs([&](int64_t i) {
    Pack<T, N> p = load_some<N>(r.p, i, piece.end, packed);
    const Pack<T, N> g = load_some<N>(r.g, i, piece.end, packed);
    Pack<T, N> m = load_some<N>(r.kept[0], i, piece.end, packed);
    Pack<T, N> v = load_some<N>(r.kept[1], i, piece.end, packed);
    Pack<T, N> top{};
    if constexpr (kAmsgrad) top = load_some<N>(r.kept[2], i, piece.end, packed);
    for (int k = 0; k < N; ++k) {
      const A before = kDecoupled ? A(p[k]) * rate.shrink : A(p[k]);
      const A d = kDecoupled ? A(g[k]) : A(g[k]) + rate.add * A(p[k]);
      const A mean = rate.beta1 * A(m[k]) + rate.new1 * d;
      A square = rate.beta2 * A(v[k]) + rate.new2 * d * d;
      m[k] = T(mean);
      v[k] = T(square);
      if constexpr (kAmsgrad) {  // NaN wins, as in PyTorch: a NaN gradient must show
        square = square <= A(top[k]) ? A(top[k]) : square;
        top[k] = T(square);
      }
      p[k] = T(before - rate.step * mean / (std::sqrt(square) * rate.root + rate.eps));
    }
    store_some(r.kept[0], i, piece.end, packed, m);
    store_some(r.kept[1], i, piece.end, packed, v);
    if constexpr (kAmsgrad) store_some(r.kept[2], i, piece.end, packed, top);
    store_some(r.p, i, piece.end, packed, p);
  });
}

// The counters first, in a launch of their own: every block of a tensor reads its one.
template <class T>
void adam_step(const Exec& exec, int64_t count, const ParamRef<T>* params, bool amsgrad,
               bool decoupled, const double* hyper) {
  for_lists(count, params, [&](const auto& list, int64_t pieces, int64_t) {
    constexpr int kMax = std::size(decltype(list.param){});
    constexpr decltype(&adam_kernel<T, false, false, kMax>) kKernels[2][2] = {
        {adam_kernel<T, false, false, kMax>, adam_kernel<T, false, true, kMax>},
        {adam_kernel<T, true, false, kMax>, adam_kernel<T, true, true, kMax>}};
    launch(exec, count_steps<T, kMax>, dim3(1), dim3(kThreads), 0, list, exec.skip);
    launch(exec, kKernels[amsgrad][decoupled], dim3(unsigned(pieces)), dim3(kThreads),
           sizeof(AdamRates<Acc<T>>), list, hyper, exec.skip);
  });
}

// ---- sums over lists ----

struct NormScratch {
  double values[kThreads / kWarp];
};

// How a kind of norm takes in a term and joins two sums.
struct NormRule {
  NormKind kind;
  double power;

  __device__ double term(double x) const {
    if (kind == NormKind::kSquareSum) return x * x;
    const double size = std::fabs(x);
    return kind == NormKind::kPowerSum ? std::pow(size, power) : size;
  }
  __device__ double operator()(double a, double b) const {
    if (kind != NormKind::kAbsMax) return a + b;
    return b <= a ? a : a != a ? a : b;  // NaN wins
  }
};

// parts[piece] = the norm of each piece.
template <class T, int kMax>
__global__ void __launch_bounds__(kThreads)
    piece_norms(const __grid_constant__ ParamList<T, kMax> list, NormRule rule, double* parts) {
  constexpr int N = kPack<T>;
  const Piece<T> piece(list);
  const bool packed = aligned(piece.param.p);
  double sum = 0;
  piece.for_packs([&](int64_t i) {
    const Pack<T, N> p = load_some<N>(piece.param.p, i, piece.end, packed);
    for (int k = 0; k < N && i + k < piece.end; ++k) sum = rule(sum, rule.term(double(p[k])));
  });
  sum = block_reduce<kThreads>(sum, shared<NormScratch>().values, rule);
  if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(kThreads)
    join_norms(int64_t pieces, const double* parts, NormRule rule, double* out) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < pieces; i += kThreads) sum = rule(sum, parts[i]);
  sum = block_reduce<kThreads>(sum, shared<NormScratch>().values, rule);
  if (threadIdx.x == 0) *out = sum;
}

template <class T>
int64_t list_norm_workspace(int64_t count, const ParamRef<T>* list) {
  return piece_count(count, list) * int64_t{sizeof(double)};
}

template <class T>
void list_norm(const Exec& exec, int64_t count, const ParamRef<T>* params, NormKind kind,
               double power, double* out) {
  const NormRule rule{kind, power};
  double* parts = static_cast<double*>(exec.workspace);
  for_lists(count, params, [&](const auto& list, int64_t pieces, int64_t first) {
    launch(exec, piece_norms<T, std::size(decltype(list.param){})>, dim3(unsigned(pieces)),
           dim3(kThreads), sizeof(NormScratch), list, rule, parts + first);
  });
  launch(exec, join_norms, dim3(1), dim3(kThreads), sizeof(NormScratch), piece_count(count, params),
         parts, rule, out);
}

template <class T, int kMax>
__global__ void __launch_bounds__(kThreads)
    scale_kernel(const __grid_constant__ ParamList<T, kMax> list, const double* factor) {
  constexpr int N = kPack<T>;
  const Piece<T> piece(list);
  const bool packed = aligned(piece.param.p);
  const Acc<T> scale = Acc<T>(*factor);
  piece.for_packs([&](int64_t i) {
    Pack<T, N> p = load_some<N>(piece.param.p, i, piece.end, packed);
    for (int k = 0; k < N; ++k) p[k] = T(Acc<T>(p[k]) * scale);
    store_some(piece.param.p, i, piece.end, packed, p);
  });
}

template <class T>
void list_scale(const Exec& exec, int64_t count, const ParamRef<T>* params, const double* factor) {
  for_lists(count, params, [&](const auto& list, int64_t pieces, int64_t) {
    launch(exec, scale_kernel<T, std::size(decltype(list.param){})>, dim3(unsigned(pieces)),
           dim3(kThreads), 0, list, factor);
  });
}

template <class T>
void penalty_backward(const Exec& exec, int64_t n, const T* p, NormKind kind, double factor,
                      const Stat<T>* dy, T* dp) {
  const bool absolute = kind == NormKind::kAbsSum;
  for_each(exec, n, [=] __device__(int64_t i) {
    using A = Acc<T>;
    const A scale = A((absolute ? factor : 2 * factor) * double(*dy)), x = A(p[i]);
    // The sign; a NaN stays one, and zero has slope zero.
    const A slope = !absolute ? x : x > 0 ? A(1) : x < 0 ? A(-1) : x;
    dp[i] = T(scale * slope);
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

CONVGRAD_STEM(optim)

}  // namespace convgrad::cuda
