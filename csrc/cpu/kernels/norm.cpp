#include "parallel.h"
#include "vec.h"

namespace convgrad::cpu {
namespace {

template <class T>
void add(Ops<T>&) {}

}  // namespace

namespace CONVGRAD_ISA {
void add_norm(Ops<float>& table) { add(table); }
void add_norm(Ops<double>& table) { add(table); }
}  // namespace CONVGRAD_ISA
}  // namespace convgrad::cpu
