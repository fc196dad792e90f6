"""Functions on tensors, with the names, arguments and defaults of ``torch.nn.functional``."""

from convgrad.functional.conv import *
from convgrad.functional.linear import *
