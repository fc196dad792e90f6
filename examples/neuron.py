"""The neuron of the batch-processing slides: w = [2.0, -3.6, 0.5] with the bias first, one sample
at a time, both as a batch, and the gradients of mini-batches."""

import numpy as np

import convgrad as cg
import convgrad.functional as F

W = np.array([2.0, -3.6, 0.5])
SAMPLES = np.array([[0.4, -1.0], [-2.1, 3.0]])


def neuron(x, w):
    """Scores and sigmoids of samples (..., 2); w = [bias, w1, w2]."""
    score = F.linear(x, w[1:].reshape(1, 2), w[:1])
    return score, F.sigmoid(score)


def loss_and_gradient(x, t, parts=1):
    """Summed binary cross-entropy of samples (N, 2) and its gradient, in ``parts`` batches."""
    w = cg.tensor(W, requires_grad=True)
    total = 0.0
    for samples, targets in zip(np.array_split(x, parts), np.array_split(t, parts)):
        _, y = neuron(cg.tensor(samples), w)
        loss = F.binary_cross_entropy(y, cg.tensor(targets[:, None]), reduction="sum")
        loss.backward()  # adds to w.grad
        total += loss.item()
    return total, w.grad.numpy()


def main():
    for name, x in zip("ab", SAMPLES):
        score, y = neuron(cg.tensor(x), cg.tensor(W))
        print(f"x_{name} = {x!s:12}  w . x = {score.item():6.2f}   sigma = {y.item():.5f}")
    score, y = neuron(cg.tensor(SAMPLES), cg.tensor(W))
    print(f"as one batch            {score.numpy().ravel()}   {y.numpy().ravel().round(5)}")

    rng = np.random.default_rng(0)
    x, t = rng.standard_normal((12, 2)), rng.integers(0, 2, 12).astype(np.float64)
    print("12 samples: summed loss and gradient")
    for parts, name in ((12, "one by one"), (1, "one batch"), (3, "3 mini-batches of 4")):
        loss, gradient = loss_and_gradient(x, t, parts)
        print(f"  {name:20} {loss:.10f}  {gradient}")


if __name__ == "__main__":
    main()
