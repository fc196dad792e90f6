// Convolution: forward and backward_input. x (n, in, c), w (k, taps, c/g), y (n, out, k).
//
//   conv_generic.h  any shape and type
//   conv_pass.h     forward, and each phase of backward_input, as one kind of pass
//   conv_plan.h     how a pass is cut into work items, and its workspace
//   conv_direct.h   runs a plan
//   conv_micro.h    the register-blocked inner loops
//   conv_fold.h     backward_input into few channels
//   conv_winograd.h 3x3 taps by Winograd's algorithm
#include "conv_direct.h"
#include "conv_fold.h"
#include "conv_generic.h"
#include "conv_winograd.h"
#include "parallel.h"
#include "vec.h"

namespace convgrad::cpu {
namespace {

// float64 is for proof.
template <class T>
constexpr bool kHasKernels = sizeof(T) == sizeof(float);

// backward_input makes a pass per phase: with more of them than this, they are too small to be
// worth it, unless there is work in each.
constexpr int64_t kManyPhases = 64, kPhaseMacs = 1 << 12;

// The algorithm of one pass. A forced one that does not support the shape is as good as kAuto.
template <class T>
ConvAlgorithm choose(const ConvShape& s, const Pass& p) {
  const bool empty = p.n * p.positions() * p.dst_c == 0;
  if (!kHasKernels<T> || empty || !is_bounded<T>(p)) return ConvAlgorithm::kGeneric;
  switch (s.algorithm) {
    case ConvAlgorithm::kGeneric:
    case ConvAlgorithm::kTile:
      return s.algorithm;
    case ConvAlgorithm::kSlide:
      if (can_slide(p)) return s.algorithm;
      break;
    case ConvAlgorithm::kDepthwise:
      if (can_depthwise(p)) return s.algorithm;
      break;
    case ConvAlgorithm::kWinograd:
      if (!s.exact && can_winograd(p)) return s.algorithm;
      break;
    case ConvAlgorithm::kFold:
    case ConvAlgorithm::kProduct:
    case ConvAlgorithm::kAuto:
      break;
  }
  if (can_depthwise(p)) return ConvAlgorithm::kDepthwise;
  if (!s.exact && can_winograd(p) && is_winograd_faster(p)) return ConvAlgorithm::kWinograd;
  // With one vector of channels the tile kernel waits for its loads; sliding needs half of them.
  if (can_slide(p) && p.dst_c <= kLanes<T>) return ConvAlgorithm::kSlide;
  return ConvAlgorithm::kTile;
}

template <class T>
Plan plan_of(const Pass& p, ConvAlgorithm algorithm) {
  return make_plan<T>(p, algorithm == ConvAlgorithm::kSlide       ? Method::kSlide
                         : algorithm == ConvAlgorithm::kDepthwise ? Method::kDepthwise
                                                                  : Method::kTile);
}

template <class T>
ConvAlgorithm conv_forward_algorithm(const ConvShape& s) {
  return choose<T>(s, forward_pass(s));
}

template <class T>
int64_t conv_forward_workspace(const ConvShape& s, int threads) {
  const Pass p = forward_pass(s);
  const ConvAlgorithm algorithm = choose<T>(s, p);
  if (algorithm == ConvAlgorithm::kGeneric) return 0;
  if (algorithm == ConvAlgorithm::kWinograd)
    return winograd_workspace<T>(plan_winograd<T>(p), threads);
  const Plan plan = plan_of<T>(p, algorithm);
  return direct_workspace<T>(&plan, 1, threads);
}

template <class T>
void conv_forward(const Exec& exec, const ConvShape& s, const T* x, const T* w,
                  const Epilogue<T>& epilogue, T* y) {
  const Pass p = forward_pass(s);
  const ConvAlgorithm algorithm = choose<T>(s, p);
  if (algorithm == ConvAlgorithm::kGeneric) return forward_generic(exec, s, x, w, epilogue, y);
  if constexpr (kHasKernels<T>) {
    if (algorithm == ConvAlgorithm::kWinograd) return run_winograd(exec, p, x, w, epilogue, y);
    const Plan plan = plan_of<T>(p, algorithm);
    run_direct(exec, &plan, 1, x, w, epilogue, y);
  }
}

// One algorithm for all phases, unless it is kAuto: then each has its own.
template <class T>
ConvAlgorithm conv_backward_input_algorithm(const ConvShape& s) {
  const int64_t count = phases(s);
  if (count == 0) return ConvAlgorithm::kGeneric;
  if (count > kManyPhases && s.macs() / count < kPhaseMacs) return ConvAlgorithm::kGeneric;
  const bool fold = kHasKernels<T> && can_fold<T>(s);
  if (fold && s.algorithm == ConvAlgorithm::kFold) return s.algorithm;
  const ConvAlgorithm algorithm = choose<T>(s, backward_pass(s, 0));
  const bool direct = algorithm == ConvAlgorithm::kSlide || algorithm == ConvAlgorithm::kTile;
  const bool free = s.algorithm == ConvAlgorithm::kAuto;
  if (fold && direct && free && is_fold_faster<T>(s)) return ConvAlgorithm::kFold;
  return algorithm;
}

// Calls winograd(pass) or direct(plans, count), passes at once, for the phases.
template <class T, class Winograd, class Direct>
void for_phases(const ConvShape& s, const Winograd& winograd, const Direct& direct) {
  Plan plans[kMostPasses];
  int waiting = 0;
  for (int64_t phase = 0; phase < phases(s); ++phase) {
    const Pass p = backward_pass(s, phase);
    const ConvAlgorithm algorithm = choose<T>(s, p);
    if (algorithm == ConvAlgorithm::kWinograd) {
      winograd(p);
      continue;
    }
    plans[waiting++] = plan_of<T>(p, algorithm);
    if (waiting < kMostPasses) continue;
    direct(plans, waiting);
    waiting = 0;
  }
  if (waiting > 0) direct(plans, waiting);
}

template <class T>
int64_t conv_backward_input_workspace(const ConvShape& s, int threads) {
  const ConvAlgorithm algorithm = conv_backward_input_algorithm<T>(s);
  if (algorithm == ConvAlgorithm::kGeneric) return 0;
  if (algorithm == ConvAlgorithm::kFold) return fold_workspace<T>(s, threads);
  int64_t bytes = 0;
  for_phases<T>(
      s,
      [&](const Pass& p) {
        bytes = max_of(bytes, winograd_workspace<T>(plan_winograd<T>(p), threads));
      },
      [&](const Plan* plans, int count) {
        bytes = max_of(bytes, direct_workspace<T>(plans, count, threads));
      });
  return bytes;
}

template <class T>
void conv_backward_input(const Exec& exec, const ConvShape& s, const T* dy, const T* w,
                         const Epilogue<T>& epilogue, T* dx) {
  const ConvAlgorithm algorithm = conv_backward_input_algorithm<T>(s);
  if (algorithm == ConvAlgorithm::kGeneric)
    return backward_input_generic(exec, s, dy, w, epilogue, dx);
  if constexpr (kHasKernels<T>) {
    if (algorithm == ConvAlgorithm::kFold) return run_fold(exec, s, dy, w, epilogue, dx);
    for_phases<T>(
        s, [&](const Pass& p) { run_winograd(exec, p, dy, w, epilogue, dx); },
        [&](const Plan* plans, int count) { run_direct(exec, plans, count, dy, w, epilogue, dx); });
  }
}

template <class T>
void add(Ops<T>& table) {
  table.conv_forward_algorithm = conv_forward_algorithm<T>;
  table.conv_forward_workspace = conv_forward_workspace<T>;
  table.conv_forward = conv_forward<T>;
  table.conv_backward_input_algorithm = conv_backward_input_algorithm<T>;
  table.conv_backward_input_workspace = conv_backward_input_workspace<T>;
  table.conv_backward_input = conv_backward_input<T>;
}

}  // namespace

namespace CONVGRAD_ISA {
void add_conv(Ops<float>& table) { add(table); }
void add_conv(Ops<double>& table) { add(table); }
}  // namespace CONVGRAD_ISA
}  // namespace convgrad::cpu
