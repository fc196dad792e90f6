"""The lecture's network, y = sigmoid(w . sigmoid(W1 sigmoid(W0 x))), and its gradients twice: by
the chain rule worked out step by step as on the slides, and by the tape."""

import numpy as np

import convgrad as cg
import convgrad.functional as F
from convgrad import viz


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def by_hand(W0, W1, w, x, t):
    """Loss and gradients of one sample. Letters as on the slides; dA is d(loss)/dA, and so on."""
    A = W0 @ x
    B = sigmoid(A)
    C = W1 @ B
    D = sigmoid(C)
    E = w @ D
    y = sigmoid(E)
    loss = -t * np.log(y) - (1 - t) * np.log(1 - y)

    dy = (y - t) / (y * (1 - y))
    dE = dy * y * (1 - y)  # = y - t: the sigmoid and the logarithms cancel
    dD = dE * w
    dC = dD * D * (1 - D)
    dB = W1.T @ dC
    dA = dB * B * (1 - B)
    return loss, {"W0": np.outer(dA, x), "W1": np.outer(dC, B), "w": dE * D}


def by_tape(W0, W1, w, x, t):
    """The same, where only the forward pass is written down."""
    W0, W1, w = (cg.tensor(a, requires_grad=True) for a in (W0, W1, w))
    y = F.sigmoid(w @ F.sigmoid(W1 @ F.sigmoid(W0 @ cg.tensor(x))))
    loss = F.binary_cross_entropy(y, cg.tensor(np.array(t, dtype=x.dtype)))
    loss.backward()
    gradients = {"W0": W0.grad.numpy(), "W1": W1.grad.numpy(), "w": w.grad.numpy()}
    return loss.item(), gradients


def letters(W0, W1, w, x, t):
    """The graph of the loss, its values and gradients under the slides' letters."""
    named = {"W0": W0, "W1": W1, "w": w}
    named = {name: cg.tensor(a, requires_grad=True) for name, a in named.items()}
    named |= {"x": cg.tensor(x), "t": cg.tensor(np.array(t))}
    W0, W1, w, x, t = named.values()
    with viz.record() as tape:
        y = F.sigmoid(w @ F.sigmoid(W1 @ F.sigmoid(W0 @ x)))
        loss = F.binary_cross_entropy(y, t)
    return tape.graph(loss, {**named, "y": y})


def chain_rule_recap(x):
    """The recap slide: f(u) = u^2, u(v) = 2 v, v(x) = 1 / x, by hand and by the tape."""
    u = 2 / x
    slide = 2 * u * 2 * (-1 / x**2)
    at = cg.tensor(np.array(x), requires_grad=True)
    ((2 * (1 / at)) ** 2).backward()
    return slide, at.grad.item()


def main():
    rng = np.random.default_rng(0)
    W0, W1 = rng.standard_normal((4, 3)), rng.standard_normal((5, 4))
    w, x = rng.standard_normal(5), rng.standard_normal(3)
    slide, tape = chain_rule_recap(1.5)
    print(f"recap, df/dx at x = 1.5   by hand {slide:.6f}   tape {tape:.6f}")
    for t in (0.0, 1.0):
        loss, gradients = by_hand(W0, W1, w, x, t)
        tape_loss, tape_gradients = by_tape(W0, W1, w, x, t)
        print(f"t = {t:.0f}: loss             by hand {loss:.6f}   tape {tape_loss:.6f}")
        for name, gradient in gradients.items():
            difference = np.abs(gradient - tape_gradients[name]).max()
            print(f"       dloss/d{name:<2} {gradient.shape!s:>7}   differs by {difference:.0e}")
    print("\nEvery step of the forward pass, and the gradient that came back to it:")
    print(letters(W0, W1, w, x, t=1.0))


if __name__ == "__main__":
    main()
