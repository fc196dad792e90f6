// NumPy's dtypes, which CuPy's arrays have too, as ours.
#pragma once
#include <pybind11/numpy.h>

#include "array.h"

namespace convgrad::python {

// False for a dtype that no kernel takes.
inline bool dtype_from_numpy(int num, DType* dtype) {
  using api = py::detail::npy_api;
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
    default:
      return false;
  }
}

inline int numpy_num(DType dtype) {
  using api = py::detail::npy_api;
  switch (dtype) {
    case DType::kFloat32:
      return api::NPY_FLOAT_;
    case DType::kFloat64:
      return api::NPY_DOUBLE_;
    case DType::kInt64:
      return sizeof(long) == 8 ? api::NPY_LONG_ : api::NPY_LONGLONG_;
    case DType::kInt32:
      return api::NPY_INT_;
    case DType::kUInt8:
      return api::NPY_UBYTE_;
    case DType::kBool:
      return api::NPY_BOOL_;
  }
  return -1;
}

}  // namespace convgrad::python
