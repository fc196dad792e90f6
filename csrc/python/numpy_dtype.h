// NumPy's dtypes, which CuPy's arrays have too, as ours.
#pragma once
#include <pybind11/numpy.h>

#include "array.h"

namespace convgrad::python {

constexpr int kNumpyHalf = 23;       // NPY_HALF, which pybind11 does not name
constexpr int kFirstUserType = 256;  // NPY_USERDEF: types that other packages have added

// bfloat16 is such a type, of the package ml_dtypes; its number is known when its name was seen.
inline bool is_bfloat16(const py::dtype& descr) {
  static int known = -1;
  const int num = descr.num();
  if (num < kFirstUserType) return false;
  if (num != known && py::cast<std::string>(descr.attr("name")) == "bfloat16") known = num;
  return num == known;
}

// False for a dtype that no kernel takes.
inline bool dtype_from_numpy(const py::dtype& descr, DType* dtype) {
  using api = py::detail::npy_api;
  const int num = descr.num();
  switch (num) {
    case api::NPY_FLOAT_:
      *dtype = DType::kFloat32;
      return true;
    case api::NPY_DOUBLE_:
      *dtype = DType::kFloat64;
      return true;
    case api::NPY_LONG_:
    case api::NPY_LONGLONG_:
      *dtype = DType::kInt64;
      return sizeof(long) == 8 || num == api::NPY_LONGLONG_;
    case api::NPY_INT_:
      *dtype = DType::kInt32;
      return true;
    case api::NPY_UBYTE_:
      *dtype = DType::kUInt8;
      return true;
    case api::NPY_BOOL_:
      *dtype = DType::kBool;
      return true;
    case kNumpyHalf:
      *dtype = DType::kFloat16;
      return true;
    default:
      *dtype = DType::kBFloat16;
      return is_bfloat16(descr);
  }
}

// Not of bfloat16.
inline int numpy_num(DType dtype) {
  using api = py::detail::npy_api;
  switch (dtype) {
    case DType::kFloat32:
      return api::NPY_FLOAT_;
    case DType::kFloat64:
      return api::NPY_DOUBLE_;
    case DType::kFloat16:
      return kNumpyHalf;
    case DType::kInt64:
      return sizeof(long) == 8 ? api::NPY_LONG_ : api::NPY_LONGLONG_;
    case DType::kInt32:
      return api::NPY_INT_;
    case DType::kUInt8:
      return api::NPY_UBYTE_;
    case DType::kBool:
      return api::NPY_BOOL_;
    case DType::kBFloat16:
      break;
  }
  return -1;
}

}  // namespace convgrad::python
