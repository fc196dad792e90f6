"""convgrad: convolutional networks on 1-D signals, 2-D images and 3-D volumes."""

from convgrad import autograd, data, functional, nn
from convgrad._cpu import empty_cache, get_num_threads, set_num_threads
from convgrad.autograd import enable_grad, is_grad_enabled, no_grad
from convgrad.random import Generator, default_generator, initial_seed, manual_seed
from convgrad.summary import summary
from convgrad.tensor import Tensor, tensor

__version__ = "0.1.0"
