"""The kernels' arithmetic of two arrays, or of an array and a number; test_math.py broadcasts."""

import numpy as np
import pytest

from tests.device import lib
from tests.helpers import assert_same_bits_for_any_threads, integers

pytestmark = pytest.mark.kernel

UFUNCS = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.true_divide,
    "maximum": np.maximum,
    "minimum": np.minimum,
}


@pytest.mark.parametrize("name", UFUNCS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "shape", [(), (0, 3), (7,), (3, 5), (2, 3, 4, 5), (1, 33, 40, 17)], ids=str
)
def test_exactly_numpys(name, dtype, shape):
    """Each operation rounds once, so that the results are NumPy's to the bit, NaN included."""
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(shape).astype(dtype) for _ in range(2))
    if a.size > 6:
        a.flat[:3] = np.nan, np.inf, 0
        b.flat[2:5] = 0, np.nan, np.nan
    kernel, ufunc = getattr(lib, name), UFUNCS[name]
    with np.errstate(all="ignore"):
        for x, y in ((a, b), (lib.channels_last(a), b), (a, 0.3), (0.3, b), (a, 2), (a, True)):
            expected = ufunc(x, y)
            np.testing.assert_array_equal(kernel(x, y), expected)
            assert kernel(x, y).dtype == dtype


def test_layouts():
    a = integers(np.random.default_rng(1), (2, 3, 4, 5))
    last = lib.channels_last(a)
    assert lib.add(a, a).flags.c_contiguous and lib.mul(a, 2.0).flags.c_contiguous
    for x, y in ((last, last), (a, last), (last, 2.0), (a[::-1], a[::-1])):
        assert lib.is_channels_last(lib.add(x, y))


def test_into_an_operand():
    rng = np.random.default_rng(2)
    a, b = (lib.channels_last(integers(rng, (2, 3, 50, 70))) for _ in range(2))
    expected = a - b
    assert lib.sub(a, b, out=a) is a
    np.testing.assert_array_equal(a, expected)
    expected = a - b
    np.testing.assert_array_equal(lib.sub(a, b, out=b), expected)


def test_other_operands_are_left_to_the_caller():
    a = np.ones((2, 3), np.float32)
    for x, y in ((a, a[:1]), (a, a.astype(np.float64)), (a.astype(np.int64), 2), (a, a[0, 0:1])):
        assert lib.mul(x, y) is None
    with pytest.raises(ValueError, match=r"\[add\] out must have shape \(2, 3\)"):
        lib.add(a, a, out=a[:1])
    with pytest.raises(TypeError, match=r"\[add\] out must be float32"):
        lib.add(a, a, out=a.astype(np.float64))
    with pytest.raises(TypeError, match=r"\[add\] b must be a (NumPy|CuPy) array.* Got str"):
        lib.add(a, "2")


def test_same_bits_for_any_threads():
    rng = np.random.default_rng(3)
    a, b = (rng.standard_normal(200_003).astype(np.float32) for _ in range(2))
    assert_same_bits_for_any_threads(lambda: [getattr(lib, name)(a, b) for name in UFUNCS])
