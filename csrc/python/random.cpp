#include "array.h"

namespace convgrad::python {
namespace {

// Two or three numbers of 64 bits, seen as int64.
const uint64_t* state_arg(const char* op, const Array& state, int64_t count) {
  if (state.rank != 1 || state.shape[0] != count || !state.is_dense(Layout::kC))
    value_error(op, "state must be a dense array of " + std::to_string(count) +
                        " numbers. Got shape " + state.shape_text() + ".");
  return state.as<const uint64_t>();
}

// y = x m. m has one value per element, or, if per_channel, one for each (n, c) of x (N, C, ...).
py::object dropout(py::handle x_, double p, py::handle state_, bool per_channel) {
  const Array x = dense_arg("dropout", "input", x_, Layout::kChannelsLast);
  const Array state_array = array_arg("dropout", "state", state_, DType::kInt64);
  const uint64_t* state = state_arg("dropout", state_array, 2);
  if (!(p >= 0 && p <= 1))
    value_error("dropout",
                "p must be from 0 to 1. Got " + std::string(py::str(py::float_(p))) + ".");
  if (per_channel && x.rank < 2)
    value_error("dropout",
                "input must have a channel axis, (N, C, ...). Got shape " + x.shape_text() + ".");
  const Array y = empty(x.dtype, x.rank, x.shape, Layout::kChannelsLast);
  const int64_t n = per_channel ? x.shape[0] : 1, c = per_channel ? x.shape[1] : x.size();
  if (x.size() == 0) return y.object;
  with_float_type("dropout", x.dtype, [&](auto t) {
    using T = decltype(t);
    run([&](const Exec& exec) {
      ops<T>().dropout(exec, n, x.size() / (n * c), c, p, state, x.as<T>(), y.as<T>());
    });
  });
  return y.object;
}

// Fills `words` (int32) with Philox blocks; state: key, counter's lower and upper half.
void random_words(py::handle words_, py::handle state_) {
  const Array words = array_arg("random_words", "words", words_, DType::kInt32);
  const Array state_array = array_arg("random_words", "state", state_, DType::kInt64);
  const uint64_t* state = state_arg("random_words", state_array, 3);
  if (words.size() % 4 != 0 || !words.is_dense(Layout::kC))
    value_error("random_words",
                "words must be dense, whole blocks of 4. Got shape " + words.shape_text() + ".");
  run([&](const Exec& exec) {
    ops<float>().random_words(exec, words.size() / 4, state, words.as<uint32_t>());
  });
}

}  // namespace

void bind_random(py::module_& m) {
  def(m, "dropout", &dropout);
  def(m, "random_words", &random_words);
}

}  // namespace convgrad::python
