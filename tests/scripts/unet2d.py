"""A U-Net that segments an image into classes, with an ignored border."""

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F


class DoubleConv(nn.Module):
    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)

    def forward(self, x):
        return F.relu(self.conv2(F.relu(self.conv1(x))))


class UNet(nn.Module):
    def __init__(self, in_channels=1, classes=3, base=4, depth=2):
        super().__init__()
        widths = [base * 2**i for i in range(depth + 1)]
        self.down = nn.ModuleList(
            [DoubleConv(a, b) for a, b in zip([in_channels, *widths[:-2]], widths[:-1])]
        )
        self.middle = DoubleConv(widths[-2], widths[-1])
        self.up = nn.ModuleList(
            [nn.ConvTranspose2d(2 * w, w, 2, stride=2) for w in reversed(widths[:-1])]
        )
        self.merge = nn.ModuleList([DoubleConv(2 * w, w) for w in reversed(widths[:-1])])
        self.head = nn.Conv2d(base, classes, 1)

    def forward(self, x):
        skips = []
        for block in self.down:
            x = block(x)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        x = self.middle(x)
        for up, merge in zip(self.up, self.merge):
            x = merge(torch.cat([skips.pop(), up(x)], dim=1))
        return self.head(x)


def make_data():
    rng = np.random.default_rng(1)
    images = 0.2 * rng.standard_normal((2, 1, 16, 16)).astype(np.float32)
    targets = np.zeros((2, 16, 16), np.int64)
    targets[:, 4:10, 3:9] = 1
    targets[:, 9:14, 8:15] = 2
    images += targets[:, None].astype(np.float32)
    targets[:, 0] = targets[:, -1] = 255
    return torch.tensor(images), torch.tensor(targets)


def main(initial_state=None):
    torch.manual_seed(0)
    model = UNet()
    if initial_state is not None:
        model.load_state_dict(initial_state)
    state = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    images, targets = make_data()
    weight = torch.tensor([0.5, 1.0, 2.0])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        logits = model(images)
        loss = F.cross_entropy(logits, targets, weight=weight, ignore_index=255)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return {
        "initial_state": state,
        "losses": losses,
        "logits": logits.detach().numpy(),
        "parameters": sum(p.numel() for p in model.parameters()),
    }


if __name__ == "__main__":
    print(main()["losses"])
