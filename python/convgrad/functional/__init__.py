"""Functions on tensors, with the names, arguments and defaults of ``torch.nn.functional``."""

from convgrad.functional.activation import *
from convgrad.functional.conv import *
from convgrad.functional.dropout import *
from convgrad.functional.linear import *
from convgrad.functional.local import *
from convgrad.functional.loss import *
from convgrad.functional.norm import *
from convgrad.functional.pad import *
from convgrad.functional.pool import *
from convgrad.functional.resample import *
from convgrad.functional.softmax import *
from convgrad.functional.spatial import *
