"""A classifier of 1-D signals with dilated and circular convolutions."""

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F


class SignalNet(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        self.conv1 = nn.Conv1d(1, 8, 7, padding=3, padding_mode="circular", bias=False)
        self.norm1 = nn.BatchNorm1d(8)
        self.conv2 = nn.Conv1d(8, 8, 3, dilation=2, padding=2, groups=8, bias=False)
        self.norm2 = nn.InstanceNorm1d(8, affine=True)
        self.pool = nn.AvgPool1d(3, stride=2, padding=1)
        self.conv3 = nn.Conv1d(8, 12, 3, stride=2)
        self.dropout = nn.Dropout(0.0)
        self.norm3 = nn.LayerNorm(12)
        self.fc = nn.Linear(12, classes)

    def forward(self, x):
        x = F.leaky_relu(self.norm1(self.conv1(x)), 0.1)
        x = self.pool(torch.relu(self.norm2(self.conv2(x))))
        x = F.adaptive_max_pool1d(self.conv3(x), 1).squeeze(-1)
        return self.fc(self.norm3(self.dropout(x)))


def make_data():
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 3, 18)
    t = np.arange(50) / 50
    signals = np.stack([np.sin(2 * np.pi * (2 + 3 * k) * (t + rng.random())) for k in labels])
    signals = signals + 0.1 * rng.standard_normal(signals.shape)
    return torch.tensor(signals[:, None].astype(np.float32)), torch.tensor(labels)


def main(initial_state=None):
    torch.manual_seed(0)
    model = SignalNet()
    if initial_state is not None:
        model.load_state_dict(initial_state)
    state = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    signals, labels = make_data()
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.9**epoch)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = criterion(model(signals), labels)
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    model.eval()
    with torch.no_grad():
        probabilities = F.softmax(model(signals), dim=-1)
        top, classes = probabilities.max(dim=1)
    return {
        "initial_state": state,
        "losses": losses,
        "top": top.numpy(),
        "classes": classes.numpy(),
        "single": model(signals[0:1]).detach().numpy(),
    }


if __name__ == "__main__":
    print(main()["losses"])
