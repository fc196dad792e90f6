"""How good predictions are. NumPy, and SciPy for surfaces: for what a table or a curve shows."""

from convgrad.metrics.classification import *
from convgrad.metrics.detection import *
from convgrad.metrics.segmentation import *
