"""The stand-in beside CuPy itself, which can be imported and asked for names without a GPU."""

import ast
import inspect
import pathlib

import numpy as np
import pytest

import convgrad

PACKAGE = pathlib.Path(convgrad.__file__).parent
# Of NumPy's names, what is used with the host's arrays alone.
HOST_ONLY = {"errstate"}


@pytest.fixture(scope="module")
def cupy():
    return pytest.importorskip("cupy", reason="compares with CuPy: pip install cupy-cuda13x")


@pytest.fixture(scope="module")
def standin():
    pytest.importorskip("convgrad._cuda_sim", reason="needs the simulator: make sim")
    from tests import cupy_standin

    return cupy_standin


def numpy_names():
    """What the package calls of NumPy, or of the array library as `xp`."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id in ("np", "xp")
            ):
                yield node.attr


def test_cupy_has_what_the_package_calls(cupy):
    missing = {n for n in numpy_names() if not hasattr(cupy, n)}
    assert missing <= HOST_ONLY


def public(cls):
    return {n for n in vars(cls) if not n.startswith("_")}


def test_every_name_of_the_standin_is_cupys(cupy, standin):
    assert {n for n in public(standin.ndarray) if not hasattr(cupy.ndarray, n)} == set()
    assert {n for n in standin._METHODS if not hasattr(cupy.ndarray, n)} == set()
    for name in ("Device", "Event", "Graph", "Memory", "MemoryPointer", "MemoryPool", "Stream"):
        theirs = getattr(cupy.cuda, name)
        own = public(getattr(standin.cuda, name))
        instance = {"ptr", "id", "mem", "size", "device_id"}  # set where theirs are made, in C
        assert {n for n in own - instance if not hasattr(theirs, n)} == set()
    for name in ("alloc", "alloc_pinned_memory", "get_current_stream", "using_allocator"):
        assert callable(getattr(cupy.cuda, name)) and callable(getattr(standin.cuda, name))
    runtime = cupy.cuda.runtime
    assert {n for n in public(type(standin.runtime)) if not hasattr(runtime, n)} == set()
    assert issubclass(cupy.cuda.memory.OutOfMemoryError, MemoryError)
    for name in public_functions(standin):
        assert hasattr(cupy, name), name


def public_functions(standin):
    for name, value in vars(standin).items():
        own = inspect.isfunction(value) and value.__module__ == standin.__name__
        if own and not name.startswith("_") and not hasattr(standin.cuda, name):
            yield name


def test_cupys_array_has_the_special_methods_of_the_standins(cupy, standin):
    special = {n for n in vars(standin.ndarray) if n.startswith("__")}
    python = set(dir(object)) | {"__dict__", "__weakref__", "__annotations__", "__getattr__"}
    in_place = {n for n in special if n.startswith("__i")}
    assert {n for n in special - python - in_place if not hasattr(cupy.ndarray, n)} == set()
    assert not hasattr(cupy.ndarray, "__index__") and not hasattr(standin.ndarray, "__index__")


def test_signatures(cupy, standin):
    for name in ("asarray", "ascontiguousarray", "empty", "asnumpy"):
        ours = list(inspect.signature(getattr(standin, name)).parameters)
        theirs = list(inspect.signature(getattr(cupy, name)).parameters)
        assert set(ours) - {"_"} <= set(theirs) and ours[:2] == theirs[:2], name
    text = cupy.ndarray.__doc__.strip()
    assert text.startswith("__init__(shape, dtype=float, memptr=None, strides=None, order='C')")
    ours = list(inspect.signature(standin.ndarray).parameters)
    assert ours == ["shape", "dtype", "memptr", "strides", "order"]


# ---- what the stand-in refuses, as CuPy does ----


def test_no_implicit_conversions(standin):
    x = standin.array([1.0, 2.0])
    host = np.ones(2)
    with pytest.raises(TypeError, match="Implicit conversion to a NumPy array is not allowed"):
        np.asarray(x)
    with pytest.raises(TypeError, match="Unsupported type"):
        x + host
    with pytest.raises(TypeError, match="Unsupported type"):
        np.add(host, x)
    with pytest.raises(ValueError, match="cannot be used for fill"):
        x[...] = host
    assert (x.get() == [1, 2]).all() and (standin.asnumpy(x + 1) == [2, 3]).all()


def test_results_are_arrays_of_the_device(standin):
    x = standin.array([[1.0, 2.0], [3.0, 4.0]])
    for y, value in (
        (x.sum(), 10),
        (x[0, 1], 2),
        (np.add.reduce(x, axis=None), 10),
        (np.max(x), 4),
    ):
        assert type(y) is standin.ndarray and y.shape == () and y.item() == value
    view = x.T[1]
    assert view.base is x and view.data.ptr == x.data.ptr + 8 and (x * 2).base is None
    view[...] = 0
    assert x.tolist() == [[1, 0], [3, 0]]
    assert np.concatenate([x, x]).shape == (4, 2) and np.where(x > 0, x, 7).tolist()[0] == [1, 7]


def test_operands_must_be_on_the_current_device(standin):
    with standin.cuda.Device(1):
        x = standin.zeros(2)
        assert x.device.id == 1 and (x + 1).tolist() == [1, 1]
    with pytest.raises(ValueError, match="array device = 1 while current = 0"):
        x + 1
    assert standin.asarray(x).device.id == 0
