// Vectors of as many doubles as a Vec<T> has lanes: for sums of floats that must stay accurate.
#pragma once
#include "vec.h"

namespace convgrad::cpu {
namespace {

template <class T>
struct DoublesOf {
  typedef double type __attribute__((vector_size(kLanes<T> * sizeof(double))));
};
template <class T>
using Doubles = typename DoublesOf<T>::type;

template <class T>
inline Doubles<T> to_doubles(Vec<T> v) {
  return __builtin_convertvector(v, Doubles<T>);
}
template <class T>
inline double sum_lanes(const Doubles<T>& v) {
  double s = 0;
  for (int l = 0; l < kLanes<T>; ++l) s += v[l];
  return s;
}

}  // namespace
}  // namespace convgrad::cpu
