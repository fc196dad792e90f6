// Convolution: forward and backward_input. x (n, in, c), w (k, taps, c/g), y (n, out, k).
//
//   conv_direct.cuh  any shape and type, one thread per element
#include "cuda/kernels/conv_direct.cuh"

namespace convgrad::cuda {
namespace {

ConvAlgorithm forward_algorithm(const ConvShape&) { return ConvAlgorithm::kGeneric; }

int64_t no_workspace(const ConvShape&, int) { return 0; }

template <class T>
void add(Ops<T>& table) {
  table.conv_forward_algorithm = forward_algorithm;
  table.conv_forward_workspace = no_workspace;
  table.conv_forward = forward_direct<T>;
  table.conv_backward_input_algorithm = forward_algorithm;
  table.conv_backward_input_workspace = no_workspace;
  table.conv_backward_input = backward_input_direct<T>;
}

}  // namespace

void add_conv(Ops<float>& table) { add(table); }
void add_conv(Ops<double>& table) { add(table); }

}  // namespace convgrad::cuda
