"""A module of one's own: a buffer that follows the data, a bare parameter, hooks that look on."""

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F


class Standardize(nn.Module):
    """Divides by a running mean of magnitudes, then scales by a learned factor per feature."""

    def __init__(self, features, momentum=0.1):
        super().__init__()
        self.momentum = momentum
        self.scale = nn.Parameter(torch.ones(features))
        self.register_buffer("magnitude", torch.ones(features))
        self.register_buffer("calls", torch.zeros(1), persistent=False)

    def forward(self, x):
        if self.training:
            with torch.no_grad():
                self.magnitude.mul_(1 - self.momentum)
                self.magnitude.add_(self.momentum * x.detach().abs().mean(dim=0))
                self.calls.add_(1)
        return self.scale * x / self.magnitude

    def extra_repr(self):
        return f"momentum={self.momentum}"


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.branches = nn.ModuleDict(
            {"wide": nn.Linear(5, 16), "narrow": nn.Linear(5, 4, bias=False)}
        )
        self.standardize = Standardize(20)
        self.mix = nn.ParameterList([nn.Parameter(torch.full((1,), 0.5)) for _ in range(2)])
        self.out = nn.Linear(20, 1)

    def forward(self, x):
        wide, narrow = self.branches["wide"](x), self.branches["narrow"](x)
        x = torch.cat([self.mix[0] * wide, self.mix[1] * narrow], dim=1)
        return self.out(F.softplus(self.standardize(x)))


def zero_bias(module):
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def main(initial_state=None):
    torch.manual_seed(0)
    model = Net().apply(zero_bias)
    if initial_state is not None:
        model.load_state_dict(initial_state)
    state = {name: value.numpy().copy() for name, value in model.state_dict().items()}

    seen = {}

    def remember(name):
        def hook(module, inputs, output):
            seen[name] = (inputs[0].shape, output.detach().mean().item())

        return hook

    handles = [m.register_forward_hook(remember(n)) for n, m in model.named_modules() if n]
    doubled = model.out.register_forward_pre_hook(lambda module, inputs: (2 * inputs[0],))

    rng = np.random.default_rng(3)
    x = torch.tensor(rng.standard_normal((24, 5)).astype(np.float32))
    y = torch.tensor(rng.standard_normal((24, 1)).astype(np.float32))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    losses = []
    for step in range(8):
        if step == 4:
            doubled.remove()
        loss = F.smooth_l1_loss(model(x), y)
        model.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    means = np.array([mean for _, mean in seen.values()])
    for handle in handles:
        handle.remove()
    seen.clear()
    model.eval()
    prediction = model(x)
    assert not seen
    return {
        "initial_state": state,
        "losses": losses,
        "hook_means": means,
        "magnitude": model.standardize.magnitude.numpy().copy(),
        "calls": model.standardize.calls.item(),
        "mix": [p.item() for p in model.mix],
        "prediction": prediction.detach().numpy(),
        "keys": sorted(model.state_dict().keys()),
        "text": repr(model.standardize),
    }


if __name__ == "__main__":
    print(main()["losses"])
