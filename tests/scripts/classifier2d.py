"""A small image classifier with batch normalisation."""

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F


class Classifier(nn.Module):
    def __init__(self, num_classes=4):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, kernel_size=3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 16, kernel_size=3, padding="same", bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(inplace=True),
        )
        self.pool = nn.AdaptiveAvgPool2d((2, 2))
        self.fc1 = nn.Linear(16 * 2 * 2, 12)
        self.fc2 = nn.Linear(12, num_classes)

    def forward(self, x):
        x = self.pool(self.features(x))
        x = x.view(x.size(0), -1)
        x = F.relu(self.fc1(x))
        return self.fc2(x)


def make_data():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 32)
    images = 0.3 * rng.standard_normal((32, 3, 12, 12))
    for image, label in zip(images, labels):
        image[:, label::4] += 1
    return torch.tensor(images.astype(np.float32)), torch.tensor(labels)


def main(initial_state=None):
    torch.manual_seed(0)
    model = Classifier()
    if initial_state is not None:
        model.load_state_dict(initial_state)
    state = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    images, labels = make_data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    criterion = nn.CrossEntropyLoss()
    losses = []
    model.train()
    for step in range(8):
        batch = slice(8 * (step % 4), 8 * (step % 4) + 8)
        optimizer.zero_grad()
        loss = criterion(model(images[batch]), labels[batch])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    with torch.no_grad():
        logits = model(images)
        accuracy = (logits.argmax(dim=1) == labels).float().mean().item()
    return {
        "initial_state": state,
        "losses": losses,
        "logits": logits.numpy(),
        "accuracy": accuracy,
        "batches_seen": int(model.features[1].num_batches_tracked.item()),
    }


if __name__ == "__main__":
    print(main()["losses"])
