"""sum_n l(y_W(x_n), t_n) + lambda R(W): what ||W||_1 and ||W||_2^2 add to the loss and to the
gradient, and what they do to the weights of a classifier with useless inputs."""

import numpy as np

import convgrad as cg
import convgrad.functional as F
from convgrad import optim, penalty


def penalised(weights, x, classes, l1=0.0, l2=0.0):
    """The slide's loss, a sum over samples, with its penalty, and its gradient."""
    W = cg.tensor(weights, requires_grad=True)
    loss = F.cross_entropy(cg.tensor(x) @ W.T, cg.tensor(classes), reduction="sum")
    loss = loss + penalty.l1([W], l1) + penalty.l2([W], l2)
    loss.backward()
    return loss.item(), W.grad.numpy()


def train(x, classes, steps=200, lr=0.1, l1=0.0, l2=0.0, weight_decay=0.0):
    """Weights (2, inputs) after full-batch gradient descent on the mean loss."""
    W = cg.tensor(np.zeros((2, x.shape[1])), requires_grad=True)
    optimizer = optim.SGD([W], lr=lr, weight_decay=weight_decay)
    x, classes = cg.tensor(x), cg.tensor(classes)
    for _ in range(steps):
        loss = F.cross_entropy(x @ W.T, classes)
        if l1:
            loss = loss + penalty.l1([W], l1)
        if l2:
            loss = loss + penalty.l2([W], l2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return W.detach().numpy()


def noisy_data(n=60, inputs=20, seed=0):
    """Two classes that differ in the first two inputs only; the others are noise."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, inputs))
    return x, (x[:, 0] + x[:, 1] > 0).astype(np.int64)


def main():
    x, classes = noisy_data()
    W = np.random.default_rng(1).standard_normal((2, x.shape[1]))
    plain, gradient = penalised(W, x, classes)
    print(f"loss without penalty                   {plain:9.4f}")
    for name, l1, l2, term, slope in (
        ("L1", 0.1, 0.0, 0.1 * np.abs(W).sum(), 0.1 * np.sign(W)),
        ("L2", 0.0, 0.1, 0.1 * (W**2).sum(), 0.2 * W),
    ):
        loss, with_penalty = penalised(W, x, classes, l1, l2)
        difference = np.abs(with_penalty - gradient - slope).max()
        print(
            f"{name} with lambda 0.1 adds {loss - plain:8.4f} (formula {term:8.4f}); gradient "
            "differs "
            f"from lambda dR/dW by {difference:.0e}"
        )
    print("after training: |weights| of the 2 useful inputs, of the 18 useless ones, exact zeros")
    for name, l1, l2 in (("none", 0, 0), ("L1  ", 0.02, 0), ("L2  ", 0, 0.02)):
        size = np.abs(train(x, classes, l1=l1, l2=l2))
        print(
            f"  {name}  {size[:, :2].mean():.3f}  {size[:, 2:].mean():.3f}  "
            f"{(size < 0.005).sum()} of {size.size} below 0.005"
        )
    decayed = train(x, classes, weight_decay=0.04)
    difference = np.abs(decayed - train(x, classes, l2=0.02)).max()
    print(f"lambda ||W||^2 against weight_decay = 2 lambda: weights differ by {difference:.0e}")


if __name__ == "__main__":
    main()
