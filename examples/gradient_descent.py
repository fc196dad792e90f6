"""W := W - eta dL/dW on real data (breast cancer biopsies, 30 measurements, 2 classes): full-batch
gradient descent, written out, against mini-batches by the library's optimizer."""

import numpy as np

import convgrad as cg
import convgrad.functional as F
from convgrad import data, nn, optim


def biopsies():
    """(inputs (569, 30) with mean 0 and deviation 1, targets (569, 1) in {0, 1})."""
    from sklearn.datasets import load_breast_cancer

    x, t = load_breast_cancer(return_X_y=True)
    return ((x - x.mean(0)) / x.std(0)).astype(np.float32), t[:, None].astype(np.float32)


def full_batch(x, t, steps, lr):
    """The mean loss before each step and at the end; gradient descent with nothing but the tape."""
    W, b = cg.zeros(1, x.shape[1], requires_grad=True), cg.zeros(1, requires_grad=True)
    x, t = cg.tensor(x), cg.tensor(t)
    losses = []
    for step in range(steps + 1):
        loss = F.binary_cross_entropy_with_logits(F.linear(x, W, b), t)
        losses.append(loss.item())
        if step < steps:
            dW, db = cg.autograd.grad(loss, (W, b))
            with cg.no_grad():
                W.add_(dW, alpha=-lr)
                b.add_(db, alpha=-lr)
    return losses


def mini_batches(x, t, epochs, lr, batch_size):
    """The mean loss over all samples before training and after each epoch."""
    cg.manual_seed(0)
    model, loss = nn.Linear(x.shape[1], 1), nn.BCEWithLogitsLoss()
    with cg.no_grad():
        model.weight.zero_()
        model.bias.zero_()
    loader = data.DataLoader(data.TensorDataset(x, t), batch_size, shuffle=True, seed=0)
    everything = [(x, t)]
    losses = [cg.train.evaluate(model, everything, loss)["loss"]]
    optimizer = optim.SGD(model.parameters(), lr=lr)
    history = cg.train.fit(model, loader, loss, optimizer, epochs, validation=everything)
    return losses + [row["val_loss"] for row in history]


def main():
    x, t = biopsies()
    full = full_batch(x, t, steps=20, lr=0.5)
    mini = mini_batches(x, t, epochs=20, lr=0.5, batch_size=32)
    print("passes over the 569 samples:   mean loss, full batch   mini-batches of 32")
    for epoch in (0, 1, 2, 5, 10, 20):
        print(f"{epoch:27}    {full[epoch]:21.4f}   {mini[epoch]:18.4f}")
    print("one full-batch step per pass, 18 mini-batch steps: noisier, but far more progress")


if __name__ == "__main__":
    main()
