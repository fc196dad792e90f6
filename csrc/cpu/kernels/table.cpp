// Fills the table of the instruction set this file is compiled for.
#include "ops.h"

#define CONVGRAD_ADD(stem)            \
  void add_##stem(Ops<float>& table); \
  void add_##stem(Ops<double>& table)

namespace convgrad::cpu::CONVGRAD_ISA {

CONVGRAD_ADD(conv);
CONVGRAD_ADD(conv_backward_weight);
CONVGRAD_ADD(linear);
CONVGRAD_ADD(local);
CONVGRAD_ADD(pool);
CONVGRAD_ADD(pool_avg);
CONVGRAD_ADD(activation);
CONVGRAD_ADD(activation_channels);
CONVGRAD_ADD(arithmetic);
CONVGRAD_ADD(softmax);
CONVGRAD_ADD(loss);
CONVGRAD_ADD(loss_dice);
CONVGRAD_ADD(loss_pointwise);
CONVGRAD_ADD(norm);
CONVGRAD_ADD(norm_rows);
CONVGRAD_ADD(move);
CONVGRAD_ADD(resample);
CONVGRAD_ADD(random);
CONVGRAD_ADD(optim);
CONVGRAD_ADD(machine);

namespace {
template <class T>
void add_every(Ops<T>& table) {
  add_conv(table);
  add_conv_backward_weight(table);
  add_linear(table);
  add_local(table);
  add_pool(table);
  add_pool_avg(table);
  add_activation(table);
  add_activation_channels(table);
  add_arithmetic(table);
  add_softmax(table);
  add_loss(table);
  add_loss_dice(table);
  add_loss_pointwise(table);
  add_norm(table);
  add_norm_rows(table);
  add_move(table);
  add_resample(table);
  add_random(table);
  add_optim(table);
  add_machine(table);
}
}  // namespace

void fill(Ops<float>& table) { add_every(table); }
void fill(Ops<double>& table) { add_every(table); }

}  // namespace convgrad::cpu::CONVGRAD_ISA
