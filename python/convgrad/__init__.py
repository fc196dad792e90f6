"""convgrad: convolutional networks on 1-D signals, 2-D images and 3-D volumes."""

from typing import Any as _Any

import numpy as _np

from convgrad import (
    autograd,
    cuda,
    data,
    dtypes,
    functional,
    io,
    metrics,
    nn,
    optim,
    penalty,
    train,
)
from convgrad._cpu import empty_cache, get_num_threads, set_num_threads
from convgrad.autograd import enable_grad, is_grad_enabled, no_grad, set_grad_enabled
from convgrad.backend import (
    device,
    get_default_device,
    get_float32_precision,
    is_exact,
    set_default_device,
    set_exact,
    set_float32_precision,
)
from convgrad.creation import *
from convgrad.dtypes import named as _named
from convgrad.functional.activation import prelu, relu, selu, sigmoid, tanh
from convgrad.functional.linear import *
from convgrad.functional.math import *
from convgrad.functional.shape import *
from convgrad.functional.softmax import *
from convgrad.mixed_precision import autocast, is_autocast_enabled
from convgrad.optim import GradScaler
from convgrad.random import Generator, default_generator, initial_seed, manual_seed
from convgrad.summary import summary
from convgrad.tensor import Tensor, tensor

__version__ = "0.1.0"

float32 = _np.dtype(_np.float32)
float64 = double = _np.dtype(_np.float64)
int64 = long = _np.dtype(_np.int64)
int32 = _np.dtype(_np.int32)
uint8 = _np.dtype(_np.uint8)
bool = _np.dtype(_np.bool_)
float16 = half = _np.dtype(_np.float16)


def __getattr__(name: str) -> _Any:
    if name == "bfloat16":  # ml_dtypes' type, needed by few
        return _named(name)
    raise AttributeError(f"module 'convgrad' has no attribute {name!r}")
