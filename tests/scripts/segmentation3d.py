"""A 3-D segmentation net: group normalisation, trilinear upsampling, dropout switched off, Dice."""

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F


class Block(nn.Sequential):
    def __init__(self, in_channels, out_channels, stride=1):
        super().__init__(
            nn.Conv3d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False),
            nn.GroupNorm(2, out_channels),
            nn.ReLU(),
            nn.Dropout3d(0.2),
        )


class VolumeNet(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        self.enter = Block(1, 4)
        self.down = Block(4, 8, stride=2)
        self.up = nn.Upsample(scale_factor=2, mode="trilinear", align_corners=False)
        self.merge = Block(12, 4)
        self.head = nn.Conv3d(4, classes, 1)

    def forward(self, x):
        skip = self.enter(x)
        x = self.up(self.down(skip))
        x = self.merge(torch.cat((skip, x), 1))
        return self.head(x)


def dice_loss(logits, target, classes, smooth=1.0):
    probabilities = F.softmax(logits, dim=1)
    wanted = F.one_hot(target, classes).permute(0, 4, 1, 2, 3).float()
    axes = (0, 2, 3, 4)
    overlap = (probabilities * wanted).sum(dim=axes)
    total = probabilities.sum(dim=axes) + wanted.sum(dim=axes)
    return 1 - ((2 * overlap + smooth) / (total + smooth)).mean()


def main(initial_state=None):
    torch.manual_seed(0)
    model = VolumeNet()
    if initial_state is not None:
        model.load_state_dict(initial_state)
    state = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout3d):
            module.eval()

    rng = np.random.default_rng(6)
    target = np.zeros((1, 8, 8, 8), np.int64)
    target[:, 1:5, 2:6, 2:6] = 1
    target[:, 3:7, 4:8, 1:4] = 2
    volume = target[:, None] + 0.3 * rng.standard_normal((1, 1, 8, 8, 8))
    volume, target = torch.tensor(volume.astype(np.float32)), torch.tensor(target)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        logits = model(volume)
        loss = F.cross_entropy(logits, target) + dice_loss(logits, target, 3)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    with torch.no_grad():
        prediction = model(volume).argmax(1)
    return {
        "initial_state": state,
        "losses": losses,
        "agreement": (prediction == target).float().mean().item(),
        "logits": logits.detach().numpy(),
    }


if __name__ == "__main__":
    print(main()["losses"])
