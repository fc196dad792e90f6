"""The training loop that the command line, the examples and your scripts share."""

from convgrad.train.callbacks import (
    Callback,
    Checkpoint,
    EarlyStopping,
    JsonLines,
    MaxNorm,
    MomentumRamp,
    Penalty,
    ProgressBar,
    SchedulerStep,
)
from convgrad.train.loop import History, Run, evaluate, fit, predict, predict_tiles

__all__ = [
    "Callback",
    "Checkpoint",
    "EarlyStopping",
    "History",
    "JsonLines",
    "MaxNorm",
    "MomentumRamp",
    "Penalty",
    "ProgressBar",
    "Run",
    "SchedulerStep",
    "evaluate",
    "fit",
    "predict",
    "predict_tiles",
]
