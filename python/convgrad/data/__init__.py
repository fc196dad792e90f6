"""Data sets, samplers and a loader that prefetches in threads."""

from convgrad.data.augment import *
from convgrad.data.dataset import *
from convgrad.data.loader import *
from convgrad.data.patches import *
from convgrad.data.sampler import *
