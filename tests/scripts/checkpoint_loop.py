"""A training loop with a DataLoader and gradient clipping, stopped and continued from a state."""

import copy

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.fc = nn.Linear(6 * 3 * 3, 1)

    def forward(self, x):
        x = F.max_pool2d(F.elu(self.norm(self.conv(x))), 2)
        return self.fc(x.flatten(start_dim=1)).squeeze(1)


def train_epoch(model, loader, optimizer):
    losses, norms = [], []
    for images, targets in loader:
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(model(images), targets)
        loss.backward()
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), max_norm=0.5)))
        optimizer.step()
        losses.append(loss.item())
    return losses, norms


def main(initial_state=None):
    torch.manual_seed(0)
    model = Net()
    if initial_state is not None:
        model.load_state_dict(initial_state)
    state = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    rng = np.random.default_rng(7)
    targets = rng.integers(0, 2, 22).astype(np.float32)
    images = rng.standard_normal((22, 2, 8, 8)) + targets[:, None, None, None]
    dataset = TensorDataset(torch.tensor(images.astype(np.float32)), torch.tensor(targets))
    loader = DataLoader(dataset, batch_size=8, shuffle=False, num_workers=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)

    losses, norms = train_epoch(model, loader, optimizer)
    checkpoint = copy.deepcopy(
        {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 1}
    )
    second, second_norms = train_epoch(model, loader, optimizer)

    restored = Net()
    restored.load_state_dict(checkpoint["model"])
    optimizer = torch.optim.Adam(restored.parameters(), lr=1.0)
    optimizer.load_state_dict(checkpoint["optimizer"])
    again, _ = train_epoch(restored, loader, optimizer)
    assert again == second, (again, second)
    return {
        "initial_state": state,
        "losses": losses + second,
        "norms": norms + second_norms,
        "batches": len(loader),
        "weight": restored.conv.weight.detach().numpy(),
    }


if __name__ == "__main__":
    print(main()["losses"])
