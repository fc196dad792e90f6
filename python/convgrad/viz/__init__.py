"""Pictures of runs, benchmarks, images and networks, as small PNG files (matplotlib, of the extra
'demo')."""

from convgrad.viz.curves import activations
from convgrad.viz.images import boxes, feature_maps, filters, heat_maps, overlays
from convgrad.viz.recording import Graph, Node, record
from convgrad.viz.runs import confusion_matrix, learning_curves, ratios

__all__ = [
    "Graph",
    "Node",
    "activations",
    "boxes",
    "confusion_matrix",
    "feature_maps",
    "filters",
    "heat_maps",
    "learning_curves",
    "overlays",
    "ratios",
    "record",
]
