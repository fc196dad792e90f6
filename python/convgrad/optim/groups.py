"""Parameter groups for an optimizer."""

from __future__ import annotations

from typing import Any

from convgrad import nn

__all__ = ["decay_groups"]

# Modules none of whose parameters should be pulled to 0.
EXEMPT = (
    nn.PReLU,
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d,
    nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d,
    nn.GroupNorm, nn.LayerNorm,
)  # fmt: skip


def decay_groups(model: Any, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups of a model's parameters: weights, which decay, and the rest, which does not.

    Biases, the scales and shifts of normalisations, and the slopes of PReLU are exempt: decay would
    pull a slope towards 0, that is PReLU towards ReLU (He et al., "Delving deep into rectifiers",
    2015). Give the list to an optimizer: ``optim.SGD(optim.decay_groups(model, 5e-4), lr=0.1)``.

    A parameter that several modules share is listed once, exempt if any of them exempts it.
    ValueError for a negative decay.
    """
    if not weight_decay >= 0:
        raise ValueError(f"[decay_groups] weight_decay must be >= 0. Got {weight_decay}.")
    exempt: set[int] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, EXEMPT) or name == "bias":
                exempt.add(id(parameter))
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if id(p) not in exempt], "weight_decay": weight_decay},
        {"params": [p for p in parameters if id(p) in exempt], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
