"""Pictures of runs, benchmarks, images and networks, as small PNG files (matplotlib, of the extra
'demo')."""

from convgrad.viz.images import boxes, feature_maps, filters, heat_maps, overlays
from convgrad.viz.runs import confusion_matrix, learning_curves, ratios

__all__ = [
    "boxes",
    "confusion_matrix",
    "feature_maps",
    "filters",
    "heat_maps",
    "learning_curves",
    "overlays",
    "ratios",
]
