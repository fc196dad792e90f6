"""A convolutional network for scikit-learn's handwritten digits, with the public training loop."""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import convgrad as cg
from convgrad import data, nn, optim

x, y = load_digits(return_X_y=True)
x = x.reshape(-1, 1, 8, 8).astype(np.float32) / 16
train_x, test_x, train_y, test_y = train_test_split(x, y, test_size=540, stratify=y, random_state=0)

cg.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(),
    nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
    nn.Flatten(), nn.Linear(512, 10),
)  # fmt: skip
cg.train.fit(
    model,
    data.DataLoader(data.TensorDataset(train_x, train_y), batch_size=32, shuffle=True, seed=0),
    nn.CrossEntropyLoss(),
    optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
    epochs=5,
    callbacks=[cg.train.ProgressBar()],
)
print(f"test accuracy {cg.metrics.accuracy(cg.train.predict(model, test_x), test_y):.4f}")
