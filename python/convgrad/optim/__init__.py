"""Optimizers and learning rate schedules, with the rules and defaults of ``torch.optim``."""

from convgrad.optim import lr_scheduler
from convgrad.optim.adam import Adam, AdamW
from convgrad.optim.grad_scaler import GradScaler
from convgrad.optim.groups import decay_groups
from convgrad.optim.optimizer import Optimizer
from convgrad.optim.sgd import SGD

__all__ = ["SGD", "Adam", "AdamW", "GradScaler", "Optimizer", "decay_groups", "lr_scheduler"]
