"""Layers, losses and containers, with the names, arguments and state of ``torch.nn``."""

from convgrad.nn import init as init
from convgrad.nn import utils as utils
from convgrad.nn.activation import *
from convgrad.nn.container import *
from convgrad.nn.conv import *
from convgrad.nn.dropout import *
from convgrad.nn.linear import *
from convgrad.nn.local import *
from convgrad.nn.loss import *
from convgrad.nn.module import *
from convgrad.nn.norm import *
from convgrad.nn.padding import *
from convgrad.nn.parameter import *
from convgrad.nn.pool import *
from convgrad.nn.upsample import *
