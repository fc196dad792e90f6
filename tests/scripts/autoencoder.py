"""A convolutional autoencoder: strided convolutions down, transposed ones up."""

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F


class Autoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 6, 3, stride=2, padding=1),
            nn.ELU(),
            nn.Conv2d(6, 8, 3, stride=2, padding=1),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(8 * 4 * 4, 10),
        )
        self.expand = nn.Linear(10, 8 * 4 * 4)
        self.up1 = nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1, output_padding=1)
        self.up2 = nn.ConvTranspose2d(6, 1, 3, stride=2, padding=1)

    def forward(self, x):
        code = self.encoder(x)
        y = F.silu(self.expand(code)).reshape(-1, 8, 4, 4)
        y = F.gelu(self.up1(y))
        return self.up2(y, output_size=x.size()), code


def main(initial_state=None):
    torch.manual_seed(0)
    model = Autoencoder()
    if initial_state is not None:
        model.load_state_dict(initial_state)
    state = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    rng = np.random.default_rng(2)
    images = torch.tensor((rng.random((6, 1, 16, 16)) > 0.6).astype(np.float32))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3, betas=(0.8, 0.99))
    bce = nn.BCEWithLogitsLoss()
    losses = []
    for _ in range(6):
        logits, code = model(images)
        reconstruction = torch.sigmoid(logits)
        loss = bce(logits, images) + 0.5 * F.mse_loss(reconstruction, images)
        loss = loss + 1e-3 * code.abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return {
        "initial_state": state,
        "losses": losses,
        "reconstruction": reconstruction.detach().numpy(),
        "gradient": model.up2.weight.grad.numpy(),
    }


if __name__ == "__main__":
    print(main()["losses"])
