// THE CONTRACT: every kernel once. Each backend fills one Ops<T> per type it computes in; an empty
// slot is an import error.
//
// Rules, for all of them:
//   - T is float or double, on CUDA bfloat16 or float16 too, whose sums are float's; Stat<T> is
//     float for those, else T. Pointers are to the array's device.
//   - Activations are channels-last (n, d, h, w, c), weights (k, taps, c / groups), all dense; a
//     matrix is row-major. `rows` counts everything but the last axis.
//   - Kernels overwrite their outputs, whatever was there; only the tape adds gradients.
//   - Kernels never allocate. `<op>_workspace(shape, threads)` says how many bytes Exec::workspace
//     must hold (64-byte aligned); ops without such a slot need none.
//   - The same bits for any number of threads: reductions are partitioned by shape alone.
//   - What changes from step to step (learning rate, counters, seeds) comes by pointer to the
//     arrays' device, so that a captured GPU step reads it anew.
//   - Outputs never overlap inputs unless the slot's comment allows it.
//   - 16-bit inputs begin at multiples of 16 bytes.
#pragma once
#include <cstdint>

#include "half.h"
#include "shape.h"

namespace convgrad {

// CUDA: where a kernel reports a value that the call could not check, such as a class out of range,
// for the next call that synchronises to raise. Memory that the device and the host both see.
struct ValueError {
  unsigned raised;  // 1 from the first report on, which is the one that is kept
  const char* op;
  int64_t value, low, high;  // it should have been in [low, high)
  bool is_real;              // then `real` is the value, and should have been from low to high
  double real;
};

// Where and with what a kernel runs.
struct Exec {
  void* stream = nullptr;        // CUDA: the stream; CPU: unused
  int threads = 1;               // CPU: at most this many threads; CUDA: unused
  void* workspace = nullptr;     // at least <op>_workspace(...) bytes
  const char* op = "";           // CUDA: the call, for errors
  ValueError* errors = nullptr;  // CUDA: the device's
  const double* skip = nullptr;  // optimizer steps: where not null and not 0, nothing changes
};

// What happens to an element v of a result, of channel k, before it is written: a layer's bias and
// activation, or the backward pass of the ReLU whose output `mask` is.
template <class T>
struct Epilogue {
  const T* bias = nullptr;  // v += bias[k], where not null
  bool relu = false;        // v = v < 0 ? 0 : v
  const T* mask = nullptr;  // laid out like the result, where not null: v = mask <= 0 ? 0 : v
};

// c (m, n) = epilogue(op(a) op(b)), the columns being its channels; op(a) is (m, k), stored (k, m)
// if trans_a; op(b) is (k, n), stored (n, k) if trans_b. `batch` such products lie one after
// another; a stride of 0 repeats an operand.
struct GemmShape {
  int64_t m, n, k;
  bool trans_a, trans_b;
  int64_t batch = 1, stride_a = 0, stride_b = 0;  // in elements; c is dense
  bool tf32 = false;                              // see ConvShape
};

// Up to kMaxRank axes with strides in elements, of any sign or zero.
constexpr int kMaxRank = 8;
struct StridedShape {
  int rank;
  int64_t size[kMaxRank], src_stride[kMaxRank], dst_stride[kMaxRank];
};

// What a loss does with its terms: keep them, add them up, or divide the sum by their number or,
// for class targets with weights, by the sum of the weights.
enum class Reduction { kNone, kMean, kSum };

// Logits (rows, c), one class or one distribution over the classes wanted per row.
struct CrossEntropyShape {
  int64_t rows, c;
  int64_t ignore_index;    // rows with this class count for nothing
  double label_smoothing;  // this share of the target is spread evenly over the classes
  Reduction reduction;
  bool log_probs;  // x holds log-probabilities: nll_loss
};

// y (out) is x (in) with `low` elements before it on each axis, cropped where low is negative or
// out is too short: y[i] = x[i - low], or padding where that lies outside x. Axes in memory order.
struct PadShape {
  int rank;  // at least 1
  int64_t in[kMaxRank], out[kMaxRank], low[kMaxRank];
};

// x (n, in, c) -> y (n, out, c) by one sparse matrix per axis, in compressed rows: along an axis,
// y[o] sums weight[e] * x[source[e]] over e in [start[o], start[o + 1]).
struct ResampleShape {
  int64_t n, c, in[3], out[3];
};
template <class T>
struct AxisMap {
  const int64_t* start;   // (out + 1)
  const int64_t* source;  // each in [0, in)
  const Stat<T>* weight;
};

// Losses element by element, input a and target b; p is LossShape::parameter.
enum class LossKind {
  kSquared,         // (a - b)^2
  kAbsolute,        // |a - b|
  kSmoothL1,        // d^2 / (2 p) where d = |a - b| < p, else d - p / 2
  kHuber,           // d^2 / 2 where d < p, else p (d - p / 2)
  kBce,             // -(b log a + (1 - b) log(1 - a)), logarithms at least -100
  kBceLogits,       // the same of sigmoid(a), b log(...) times pos_weight
  kSoftMargin,      // log(1 + exp(-a b))
  kMargin,          // max(0, p - a b)
  kHingeEmbedding,  // a where b is 1, max(0, p - a) where b is -1
};
struct LossShape {
  LossKind kind;
  int64_t n;
  Reduction reduction;
  double parameter;
};

// max(0, margin - x[y] + x[i])^power / c over the classes i != y, in rows of c.
struct MultiMarginShape {
  int64_t rows, c;
  Reduction reduction;
  double margin;
  bool squared;
};

// Logits (n, pixels, c), a class per pixel (softmax) or a target per element (sigmoid).
struct DiceShape {
  int64_t n, pixels, c;
  double smooth;
};

// x (batches, rows, c): a mean and a variance for each batch and each of `groups` groups of
// neighbouring channels, over rows * c / groups values.
struct NormShape {
  int64_t batches, rows, c, groups;
  double eps;
};

// One parameter of an optimizer step, or one tensor of a list: p, its gradient g and what the rule
// keeps from step to step, all of n elements in one order.
template <class T>
struct ParamRef {
  T* p;
  const T* g;
  T* kept[3];
  double* step;  // Adam: steps taken, counted up by the kernel
  int64_t n;
  bool first;  // SGD: kept[0] holds nothing yet
};

// What is summed over a list of tensors.
enum class NormKind { kAbsSum, kSquareSum, kAbsMax, kPowerSum };

// Elementwise functions: X(functor, name). a and b are UnaryParams; "from y" marks those whose
// backward pass takes the output instead of the input.
#define CONVGRAD_UNARIES(X)                                                      \
  X(Relu, "relu")                   /* max(0, x); from y */                      \
  X(LeakyRelu, "leaky_relu")        /* x, a x below 0; from y too if a >= 0 */   \
  X(Elu, "elu")                     /* x, a (e^x - 1) below 0, a >= 0; from y */ \
  X(EluFromInput, "elu_from_input") /* the same for any a; from x */             \
  X(Selu, "selu")                   /* from y */                                 \
  X(Silu, "silu")                   /* x sigmoid(x) */                           \
  X(Gelu, "gelu")                   /* x P(X < x), X ~ N(0, 1) */                \
  X(GeluTanh, "gelu_tanh")          /* its approximation by tanh */              \
  X(Mish, "mish")                   /* x tanh(log(1 + e^x)) */                   \
  X(Softplus, "softplus")           /* log(1 + e^(a x)) / a, x where a x > b */  \
  X(Softsign, "softsign")           /* x / (1 + |x|) */                          \
  X(Hardtanh, "hardtanh")           /* x within [a, b]; from y */                \
  X(Hardsigmoid, "hardsigmoid")     /* (x + 3) / 6 within [0, 1] */              \
  X(Hardswish, "hardswish")         /* x hardsigmoid(x) */                       \
  X(Sigmoid, "sigmoid")             /* from y */                                 \
  X(LogSigmoid, "logsigmoid")                                                    \
  X(Tanh, "tanh")   /* from y */                                                 \
  X(Exp, "exp")     /* from y */                                                 \
  X(Expm1, "expm1") /* from y */                                                 \
  X(Log, "log")                                                                  \
  X(Log1p, "log1p")                                                              \
  X(Erf, "erf")                                                                  \
  X(Sqrt, "sqrt")             /* from y */                                       \
  X(Rsqrt, "rsqrt")           /* from y */                                       \
  X(Reciprocal, "reciprocal") /* from y */                                       \
  X(Square, "square")                                                            \
  X(Abs, "abs")                                                                  \
  X(Neg, "neg")     /* from anything */                                          \
  X(Clamp, "clamp") /* hardtanh, whose gradient at a and b is 1 */

enum class Unary {
#define CONVGRAD_NAME(functor, name) k##functor,
  CONVGRAD_UNARIES(CONVGRAD_NAME)
#undef CONVGRAD_NAME
};
struct UnaryParams {
  double a = 0, b = 0;
};

// Arithmetic of two operands; the extrema are NaN where either is.
enum class Binary { kAdd, kSub, kMul, kDiv, kMaximum, kMinimum };
template <class T>
struct Operand {
  const T* array;  // n elements; or, where null,
  Stat<T> number;
};

template <class T>
struct Ops {
  // ---- conv ----
  // What the three below do with a shape; never kAuto.
  ConvAlgorithm (*conv_forward_algorithm)(const ConvShape&);
  ConvAlgorithm (*conv_backward_input_algorithm)(const ConvShape&);
  ConvAlgorithm (*conv_backward_weight_algorithm)(const ConvShape&);
  // y = epilogue(x * w). x (n, in, c), w (k, taps, c / groups), y (n, out, k).
  int64_t (*conv_forward_workspace)(const ConvShape&, int threads);
  void (*conv_forward)(const Exec&, const ConvShape&, const T* x, const T* w, const Epilogue<T>&,
                       T* y);
  // dx = epilogue(the adjoint of y in x). With a bias (in_c) it is the forward pass of a transposed
  // convolution.
  int64_t (*conv_backward_input_workspace)(const ConvShape&, int threads);
  void (*conv_backward_input)(const Exec&, const ConvShape&, const T* dy, const T* w,
                              const Epilogue<T>&, T* dx);
  // dw, and db (k) = sum of dy over n and pixels, where not null.
  int64_t (*conv_backward_weight_workspace)(const ConvShape&, int threads);
  void (*conv_backward_weight)(const Exec&, const ConvShape&, const T* dy, const T* x, T* dw,
                               T* db);

  // ---- linear ----
  int64_t (*gemm_workspace)(const GemmShape&, int threads);
  void (*gemm)(const Exec&, const GemmShape&, const T* a, const T* b, const Epilogue<T>&, T* c);
  // out (c) = the sum of x (rows, c) over rows, in blocks whose bounds follow from `rows` alone.
  int64_t (*column_sum_workspace)(int64_t rows, int64_t c, int threads);
  void (*column_sum)(const Exec&, int64_t rows, int64_t c, const T* x, T* out);

  // ---- local: locally connected layers ----
  // A convolution with weights of its own at every output position: x (n, in, c),
  // w (k, out, taps, c), b (k, out) or null, y (n, out, k). The shape is the convolution's, with
  // one group. db may be null.
  int64_t (*local_forward_workspace)(const ConvShape&, int threads);
  void (*local_forward)(const Exec&, const ConvShape&, const T* x, const T* w, const T* b, T* y);
  int64_t (*local_backward_input_workspace)(const ConvShape&, int threads);
  void (*local_backward_input)(const Exec&, const ConvShape&, const T* dy, const T* w, T* dx);
  int64_t (*local_backward_weight_workspace)(const ConvShape&, int threads);
  void (*local_backward_weight)(const Exec&, const ConvShape&, const T* dy, const T* x, T* dw,
                                T* db);

  // ---- pool ----
  // y = the maximum of each window, the first of equal ones; NaN is the maximum. tap (may be null):
  // the number of its tap, tap_bytes() each, as uint8_t or int32_t.
  void (*max_pool_forward)(const Exec&, const PoolShape&, const T* x, T* y, void* tap);
  // dx = the sum of dy over the windows whose maximum it is. mask (like dy; may be null): windows
  // where it is <= 0 count for nothing. With y of a ReLU's output as mask that is the backward pass
  // of both: y is positive where its maximum was.
  void (*max_pool_backward)(const Exec&, const PoolShape&, const T* dy, const void* tap,
                            const T* mask, T* dx);
  // index = where in its plane (in) each maximum lies.
  void (*max_pool_index)(const Exec&, const PoolShape&, const void* tap, int64_t* index);
  int64_t (*avg_pool_forward_workspace)(const PoolShape&, int threads);
  void (*avg_pool_forward)(const Exec&, const PoolShape&, const T* x, T* y);
  void (*avg_pool_backward)(const Exec&, const PoolShape&, const T* dy, T* dx);
  // y (n, out, c) = 0, then y[n, index[n, i, c], c] = x[n, i, c] (n, in, c) in the order of i: the
  // last of equal indices wins. in and out count pixels; each index is in [0, out).
  int64_t (*max_unpool_forward_workspace)(int64_t n, int64_t out, int64_t c, int threads);
  void (*max_unpool_forward)(const Exec&, int64_t n, int64_t in, int64_t out, int64_t c, const T* x,
                             const int64_t* index, T* y);
  // dx[n, i, c] = dy[n, index[n, i, c], c]
  void (*max_unpool_backward)(const Exec&, int64_t n, int64_t in, int64_t out, int64_t c,
                              const T* dy, const int64_t* index, T* dx);

  // ---- activation ----
  // y = f(x) over n elements. y may be x.
  void (*unary_forward)(const Exec&, Unary, const UnaryParams&, int64_t n, const T* x, T* y);
  // dx = dy f'; `saved` is x or y, see CONVGRAD_UNARIES. dx may be dy.
  void (*unary_backward)(const Exec&, Unary, const UnaryParams&, int64_t n, const T* saved,
                         const T* dy, T* dx);
  // y = max(0, x) + a min(0, x): x (rows, c), a (c). One slope for all is c = 1.
  void (*prelu_forward)(const Exec&, int64_t rows, int64_t c, const T* x, const T* a, T* y);
  int64_t (*prelu_backward_workspace)(int64_t rows, int64_t c, int threads);
  void (*prelu_backward)(const Exec&, int64_t rows, int64_t c, const T* x, const T* a, const T* dy,
                         T* dx, T* da);
  // y (n) = the largest of k neighbours of x (n k). The gradient goes to the first of
  // equals; NaN is larger than everything.
  void (*maxout_forward)(const Exec&, int64_t n, int64_t k, const T* x, T* y);
  void (*maxout_backward)(const Exec&, int64_t n, int64_t k, const T* x, const T* dy, T* dx);

  // ---- softmax ----
  // y = e^x / sum of e^x, or its logarithm, along the middle axis of x (outer, n, inner).
  void (*softmax_forward)(const Exec&, bool log, int64_t outer, int64_t n, int64_t inner,
                          const T* x, T* y);
  void (*softmax_backward)(const Exec&, bool log, int64_t outer, int64_t n, int64_t inner,
                           const T* y, const T* dy, T* dx);

  // ---- loss ----
  // Per row -sum over c of q[c] log softmax(x)[c], q = weight * smoothed target. The target is
  // `classes` (rows) or `probs` (rows, c), the other is null; weight (c) may be null.
  // loss: (rows) for kNone, else one value. For backward: stats (rows, 2), a row's maximum and its
  // sum of exp(x - maximum), unused for log_probs; norm (1), what the sum was divided by.
  // *bad_row: the first row whose class is outside [0, c) and not ignore_index, or -1.
  int64_t (*cross_entropy_workspace)(const CrossEntropyShape&, int threads);
  void (*cross_entropy_forward)(const Exec&, const CrossEntropyShape&, const T* x,
                                const int64_t* classes, const T* probs, const Stat<T>* weight,
                                Stat<T>* loss, Stat<T>* stats, Stat<T>* norm, int64_t* bad_row);
  // dx (rows, c) and, where not null, dprobs (rows, c). dy: (rows) for kNone, else one value.
  void (*cross_entropy_backward)(const Exec&, const CrossEntropyShape&, const T* x,
                                 const int64_t* classes, const T* probs, const Stat<T>* weight,
                                 const Stat<T>* stats, const Stat<T>* norm, const Stat<T>* dy,
                                 T* dx, T* dprobs);
  // Losses of n elements: loss (n) for kNone, else one value; kMean divides by n. weight (n) and,
  // for kBceLogits, pos_weight (n) may be null. backward: da or db may be null; dy as loss.
  int64_t (*pointwise_loss_workspace)(const LossShape&, int threads);
  void (*pointwise_loss_forward)(const Exec&, const LossShape&, const T* a, const T* b,
                                 const T* weight, const T* pos_weight, Stat<T>* loss, int64_t* bad);
  void (*pointwise_loss_backward)(const Exec&, const LossShape&, const T* a, const T* b,
                                  const T* weight, const T* pos_weight, const Stat<T>* dy, T* da,
                                  T* db);
  // x (rows, c), weight (c) or null; kMean divides by rows. *bad_row as above.
  int64_t (*multi_margin_workspace)(const MultiMarginShape&, int threads);
  void (*multi_margin_forward)(const Exec&, const MultiMarginShape&, const T* x,
                               const int64_t* classes, const Stat<T>* weight, Stat<T>* loss,
                               int64_t* bad_row);
  void (*multi_margin_backward)(const Exec&, const MultiMarginShape&, const T* x,
                                const int64_t* classes, const Stat<T>* weight, const Stat<T>* dy,
                                T* dx);
  // loss = 1 - mean over (n, c) of (2 sum(p t) + smooth) / (sum(p) + sum(t) + smooth), sums over
  // pixels. The target is `classes` (n, pixels) with p = softmax(x), or `mask` (n, pixels, c) with
  // p = sigmoid(x). For backward: p (n, pixels, c) and dp (n, c, 2), the slope of the loss in p
  // where t is 0 and what a t of 1 adds to it. *bad_row: the first pixel of a class outside [0, c).
  int64_t (*dice_workspace)(const DiceShape&, int threads);
  void (*dice_forward)(const Exec&, const DiceShape&, const T* x, const int64_t* classes,
                       const T* mask, Stat<T>* loss, T* p, Stat<T>* dp, int64_t* bad_row);
  void (*dice_backward)(const Exec&, const DiceShape&, const int64_t* classes, const T* mask,
                        const T* p, const Stat<T>* dp, const Stat<T>* dy, T* dx);

  // ---- norm ----
  // mean and biased variance (batches, c), a group's repeated for each of its channels. Where not
  // null, running = (1 - momentum) running + momentum (mean over batches), of unbiased variances.
  // Without rows the mean is 0, the variance 1, and running stays.
  int64_t (*norm_workspace)(const NormShape&, int threads);  // of all three
  void (*norm_statistics)(const Exec&, const NormShape&, const T* x, Stat<T>* mean, Stat<T>* var,
                          const double* momentum, Stat<T>* running_mean, Stat<T>* running_var);
  // y = (x - mean) / sqrt(var + eps) * w + b, plus residual (as x), and then max(0, .) for relu; w
  // and b (c) and residual may be null. y may be x or residual.
  void (*norm_apply)(const Exec&, const NormShape&, const T* x, const Stat<T>* mean,
                     const Stat<T>* var, const Stat<T>* w, const Stat<T>* b, const T* residual,
                     bool relu, T* y);
  // dx, dw (c), db (c), each where not null. fixed: mean and var do not depend on x. mask (as x, or
  // null): dy counts as 0 where the mask is <= 0, as behind a ReLU whose output it is; that dy goes
  // to dmasked where not null, which is the gradient of the residual. dmasked may be dy.
  void (*norm_backward)(const Exec&, const NormShape&, const T* x, const T* dy, const T* mask,
                        const Stat<T>* mean, const Stat<T>* var, const Stat<T>* w, bool fixed,
                        T* dx, Stat<T>* dw, Stat<T>* db, T* dmasked);
  // The same for each row of x (rows, c) alone: mean and inverse standard deviation (rows), w and
  // b (c).
  void (*layer_norm_forward)(const Exec&, int64_t rows, int64_t c, double eps, const T* x,
                             const Stat<T>* w, const Stat<T>* b, T* y, Stat<T>* mean,
                             Stat<T>* inv_std);
  int64_t (*layer_norm_backward_workspace)(int64_t rows, int64_t c, int threads);
  void (*layer_norm_backward)(const Exec&, int64_t rows, int64_t c, const T* x, const T* dy,
                              const Stat<T>* mean, const Stat<T>* inv_std, const Stat<T>* w, T* dx,
                              Stat<T>* dw, Stat<T>* db);

  // ---- arithmetic ----
  // out = a op b over n elements. out may be a or b.
  void (*binary)(const Exec&, Binary, int64_t n, const Operand<T>& a, const Operand<T>& b, T* out);

  // ---- move: layout, cat, pad, index ----
  // dst = src, elementwise over `size`; src and dst differ in strides alone.
  void (*copy)(const Exec&, const StridedShape&, const T* src, T* dst);
  // y = x in another type, the nearest number; NaN stays NaN.
  void (*from_float)(const Exec&, int64_t n, const float* x, T* y);
  void (*to_float)(const Exec&, int64_t n, const T* x, float* y);
  // wide (rows, sum of cols) = the matrices parts[i] (rows, cols[i]) side by side.
  void (*join_columns)(const Exec&, int64_t rows, int64_t count, const int64_t* cols,
                       const T* const* parts, T* wide);
  // And back: parts[i] = their columns of wide.
  void (*split_columns)(const Exec&, int64_t rows, int64_t count, const int64_t* cols,
                        const T* wide, T* const* parts);
  // y = x inside, value outside.
  void (*pad_constant)(const Exec&, const PadShape&, const T* x, T value, T* y);
  // The first i whose index is outside [low, high), -1 if there is none. (On CUDA: sets the
  // device's error flag and returns -1.)
  int64_t (*find_outside)(const Exec&, int64_t n, const int64_t* index, int64_t low, int64_t high);
  // out (count, cols) = rows of x (rows, cols): out[i] = x[index[i]]. Each index is in
  // [-rows, rows); negative ones count from the end.
  void (*index_rows)(const Exec&, int64_t count, int64_t cols, const int64_t* index, int64_t rows,
                     const T* x, T* out);
  // out (rows, cols) = 0, then out[index[i]] += values[i] (count, cols) in the order of i; indices
  // as for index_rows.
  void (*index_add)(const Exec&, int64_t count, int64_t cols, const int64_t* index, const T* values,
                    int64_t rows, T* out);

  // ---- resample: interpolation, padding that repeats x; the adjoint: the transposed maps ----
  void (*resample)(const Exec&, const ResampleShape&, const AxisMap<T> map[3], const T* x, T* y);

  // ---- random: dropout ----
  // y (n, pixels, c) = x m, where m (n, c) is 0 with probability p and else 1 / (1 - p): element i
  // of m is 0 if word i % 4 of the Philox4x32-10 block with counter state[1] + i / 4 and key
  // state[0] is below p 2^32. The backward pass is the same on dy. state: seed, offset.
  void (*dropout)(const Exec&, int64_t n, int64_t pixels, int64_t c, double p,
                  const uint64_t* state, const T* x, T* y);
  // words[0 .. 4 blocks): Philox blocks themselves. state: key, counter's lower and upper half.
  void (*random_words)(const Exec&, int64_t blocks, const uint64_t* state, uint32_t* words);

  // ---- optim ----
  // hyper: lr, momentum, dampening, weight_decay. d = g + weight_decay p; with momentum kept[0] =
  // momentum kept[0] + (1 - dampening) d, or d at first, and d becomes kept[0], or with nesterov
  // d + momentum kept[0]; p -= lr d.
  void (*sgd_step)(const Exec&, int64_t count, const ParamRef<T>* params, bool nesterov,
                   const double* hyper);
  // hyper: lr, beta1, beta2, eps, weight_decay. kept: moving averages of g and g^2, and with
  // amsgrad the second's maximum. decoupled (AdamW): p *= 1 - lr weight_decay, else g +=
  // weight_decay p.
  void (*adam_step)(const Exec&, int64_t count, const ParamRef<T>* params, bool amsgrad,
                    bool decoupled, const double* hyper);
  // *out = the sum over all elements of all p, in blocks; kPowerSum: of |p|^power.
  int64_t (*list_norm_workspace)(int64_t count, const ParamRef<T>* list);
  void (*list_norm)(const Exec&, int64_t count, const ParamRef<T>* list, NormKind kind,
                    double power, double* out);
  // p *= *factor for all p.
  void (*list_scale)(const Exec&, int64_t count, const ParamRef<T>* list, const double* factor);
  // dp = *dy * factor * (d/dp of |p|, or of p^2), for kAbsSum or kSquareSum.
  void (*penalty_backward)(const Exec&, int64_t n, const T* p, NormKind kind, double factor,
                           const Stat<T>* dy, T* dp);

  // ---- machine: ceilings for benchmarks ----
  // `rounds` rounds of multiply-adds on registers alone in each of `items` items; y (items) is what
  // comes out. fma_flops: of one round of one item, two per multiply-add.
  int64_t (*fma_flops)();
  void (*fma_rounds)(const Exec&, int64_t items, int64_t rounds, T* y);
};

// The backend's table for the instruction set or device in use.
template <class T>
const Ops<T>& ops();

}  // namespace convgrad
