"""Parameter groups: no decay on biases, a faster head, a stem frozen at first; a schedule."""

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.backbone = nn.Sequential(
            nn.Conv2d(4, 6, 3, stride=2, groups=2),
            nn.PReLU(6),
            nn.AvgPool2d(2),
        )
        self.head = nn.Linear(6 * 2 * 2, 3)

    def forward(self, x):
        x = F.hardtanh(self.stem(x))
        return self.head(torch.flatten(self.backbone(x), 1))


def main(initial_state=None):
    torch.manual_seed(0)
    model = Net()
    if initial_state is not None:
        model.load_state_dict(initial_state)
    state = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    for p in model.stem.parameters():
        p.requires_grad = False

    decay, no_decay = [], []
    for name, p in model.named_parameters():
        if name.startswith("backbone"):
            (no_decay if p.ndim == 1 else decay).append(p)
    optimizer = torch.optim.SGD(
        [
            {"params": decay, "weight_decay": 0.1},
            {"params": no_decay},
            {"params": model.head.parameters(), "lr": 0.1, "momentum": 0.5, "nesterov": True},
            {"params": model.stem.parameters(), "lr": 0.01},
        ],
        lr=0.02,
        momentum=0.9,
    )
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=3, gamma=0.5)

    rng = np.random.default_rng(4)
    x = torch.tensor(rng.standard_normal((10, 1, 10, 10)).astype(np.float32))
    y = torch.tensor(rng.integers(0, 3, 10))
    losses, rates = [], []
    for step in range(10):
        optimizer.zero_grad()
        log_probabilities = F.log_softmax(model(x), dim=1)
        loss = F.nll_loss(log_probabilities, y)
        loss.backward()
        optimizer.step()
        scheduler.step()
        if step == 5:
            for p in model.stem.parameters():
                p.requires_grad = True
        losses.append(loss.item())
        rates.append([group["lr"] for group in optimizer.param_groups])
    return {
        "initial_state": state,
        "losses": losses,
        "rates": np.array(rates),
        "slopes": model.backbone[1].weight.detach().numpy(),
        "stem": model.stem.weight.detach().numpy(),
    }


if __name__ == "__main__":
    print(main()["losses"])
