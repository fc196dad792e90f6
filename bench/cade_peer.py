"""cade's two networks trained by PyTorch: the same slices in the same order, mirrored the same,
from the same first weights and with the same settings; then both measured by the same code.

    python -m bench.cade_peer [--seed 0] [--threads 2] [--first]

--first: instead, what cade's networks had to beat. The same classifier, and a box from one heat map
with the size from the features under it (24,277 parameters, smooth-L1), each by Adam over 6 epochs
of 3,000 slices of their own.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import convgrad
from convgrad import metrics, models
from convgrad.tasks import cade, lesions
from convgrad.tasks.images import Settings


class SliceCNN(nn.Module):
    """As ``models.SliceCNN``."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, width in ((4, 16), (16, 32), (32, 64)):
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width)]
            layers += [nn.ReLU(), nn.MaxPool2d(2)]
        self.trunk = nn.Sequential(*layers)
        self.classify = nn.Linear(64, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classify(self.trunk(x).amax((2, 3)))


class BoxCNN(nn.Module):
    """As ``models.BoxCNN``."""

    def __init__(self) -> None:
        super().__init__()

        def convolution(before: int, width: int) -> list[nn.Module]:
            layer = nn.Conv2d(before, width, 3, padding=1, bias=False)
            return [layer, nn.BatchNorm2d(width), nn.ReLU()]

        layers = [*convolution(4, 16), nn.MaxPool2d(2), *convolution(16, 32), nn.MaxPool2d(2)]
        for _ in range(4):
            layers += convolution(32, 32)
        self.trunk = nn.Sequential(*layers)
        self.heat = nn.Conv2d(32, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heat = self.heat(self.trunk(x))
        height, width = heat.shape[2:]
        weights = heat.flatten(2).softmax(2).view_as(heat)
        y = (weights.sum(3) * (torch.arange(height) + 0.5) / height).sum(2)
        x = (weights.sum(2) * (torch.arange(width) + 0.5) / width).sum(2)
        top, bottom, left, right = y[:, 0], y[:, 1], x[:, 2], x[:, 3]
        return torch.stack([(top + bottom) / 2, (left + right) / 2, bottom - top, right - left], 1)


class FirstBoxCNN(nn.Module):
    """The centre from one heat map at an eighth of the resolution, the size from the features."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = SliceCNN().trunk
        self.heat = nn.Conv2d(64, 1, 1)
        self.measure = nn.Linear(64, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.trunk(x)
        height, width = features.shape[2:]
        weights = self.heat(features).flatten(2).softmax(2).unflatten(2, (height, width))
        y = (weights.sum(3) * (torch.arange(height) + 0.5) / height).sum(2)
        x = (weights.sum(2) * (torch.arange(width) + 0.5) / width).sum(2)
        measured = self.measure((features * weights).sum((2, 3)))
        middle = torch.cat([y, x], 1) + measured[:, :2].tanh() * 0.1
        return torch.cat([middle, measured[:, 2:].sigmoid()], 1)


def box_loss(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """As ``cade.box_loss``."""
    low = torch.maximum(predicted[:, :2] - predicted[:, 2:] / 2, target[:, :2] - target[:, 2:] / 2)
    high = torch.minimum(predicted[:, :2] + predicted[:, 2:] / 2, target[:, :2] + target[:, 2:] / 2)
    intersection = (high - low).relu().prod(1)
    union = predicted[:, 2:].relu().prod(1) + target[:, 2:].prod(1) - intersection
    overlap = (intersection / (union + 1e-6)).mean()
    return 1 - overlap + distance(predicted, target)


def distance(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.smooth_l1_loss(predicted * 10, target * 10)


def fit(model: nn.Module, batches: Any, loss: Any, settings: Settings) -> None:
    """As ``cade._fit``, with PyTorch's Adam and cosine."""
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.lr)
    steps = settings.epochs * len(batches)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    for _ in range(settings.epochs):
        for x, target in batches:
            optimizer.zero_grad()
            loss(model(torch.from_numpy(x.numpy())), torch.from_numpy(target.numpy())).backward()
            optimizer.step()
            falling.step()


def trained_by_torch(splits: cade.Splits, seed: int) -> models.CADe:
    """convgrad's networks with the weights that PyTorch found."""
    convgrad.manual_seed(seed)
    model = models.CADe()
    for ours, theirs, batches, loss, settings in (
        (model.slices, SliceCNN(), cade.slice_batches, F.cross_entropy, cade.SLICES),
        (model.boxes, BoxCNN(), cade.box_batches, box_loss, cade.BOXES),
    ):
        first = {k: torch.from_numpy(v.numpy(copy=True)) for k, v in ours.state_dict().items()}
        theirs.load_state_dict(first)
        fit(theirs, batches(splits.train, settings.batch_size, seed), loss, settings)
        ours.load_state_dict({k: v.numpy() for k, v in theirs.state_dict().items()})
    return model.eval()


def trained_here(splits: cade.Splits, seed: int) -> models.CADe:
    convgrad.manual_seed(seed)
    model = models.CADe()
    cade.fit_slices(model.slices, splits, seed=seed)
    cade.fit_boxes(model.boxes, splits, seed=seed)
    return model.eval()


def first(seed: int) -> None:
    """Prints what the first networks reach on the test slices."""
    torch.manual_seed(seed)
    settings, test = Settings(epochs=6, lr=3e-3), cade.load(seed, (1, 1, cade.SIZES[2])).test()
    sick = cade.with_lesion(test)
    classify, box = SliceCNN(), FirstBoxCNN()
    slices = lesions.slices(seed, "train", range(3000))
    fit(classify, cade.slice_batches(slices, 32, seed), F.cross_entropy, settings)
    slices = lesions.slices(seed, "train", range(3000), lesion=True)
    fit(box, cade.box_batches(slices, 32, seed), distance, settings)
    with torch.no_grad():
        classes = classify.eval()(torch.from_numpy(test.images)).argmax(1).numpy()
        iou = metrics.box_iou(box.eval()(torch.from_numpy(sick.images)).numpy(), sick.boxes)
    accuracy, found = (classes == (test.opacities > 0)).mean(), (iou > 0.5).mean()
    print(f"first networks, seed {seed}: accuracy {accuracy:.4f}  iou {iou.mean():.4f}  "
          f"found {found:.4f}")  # fmt: skip


def main() -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--first", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    convgrad.set_num_threads(args.threads)
    if args.first:
        first(args.seed)
        return
    splits = cade.load(args.seed)
    threshold = cade.Threshold.chosen(splits.validation)
    test = splits.test()
    for name, trained in (("PyTorch", trained_by_torch), ("convgrad", trained_here)):
        start = time.perf_counter()
        model = trained(splits, args.seed)
        seconds = time.perf_counter() - start
        figures, _ = cade.measure(model, test, threshold)
        print(f"{name}, seed {args.seed}: trained in {seconds:.0f} s", flush=True)
        print("  " + "  ".join(f"{key} {value:.4f}" for key, value in figures.items()), flush=True)


if __name__ == "__main__":
    main()
