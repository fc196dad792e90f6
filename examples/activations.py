"""Every activation with its gradient; how much gradient is left after many layers; what each costs.

PReLU is max(0, x) + a min(0, x). (max(a x, x), as it is often written, is wrong for a > 1.)
"""

import time

import numpy as np

import convgrad as cg
import convgrad.functional as F

ACTIVATIONS = {
    "sigmoid": F.sigmoid,
    "tanh": F.tanh,
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "prelu": lambda x: F.prelu(x, cg.tensor(np.array([0.25], x.dtype))),
    "elu": F.elu,
    "silu": F.silu,
    "gelu": F.gelu,
    "softplus": F.softplus,
    "hardtanh": F.hardtanh,
}
LECTURE = ("sigmoid", "tanh", "relu", "leaky_relu", "prelu")


def value_and_gradient(function, at):
    x = cg.tensor(np.asarray(at, np.float64), requires_grad=True)
    y = function(x)
    y.sum().backward()
    return y.detach().numpy(), x.grad.numpy()


def gradient_through_depth(function, depth=30, width=64, seed=0):
    """|gradient at the input| / |gradient at the output| of a stack of layers y = f(W x).

    W is drawn as He et al. propose for ReLU, standard deviation sqrt(2 / width).
    """
    rng = np.random.default_rng(seed)
    x = cg.tensor(rng.standard_normal((16, width)), requires_grad=True)
    y = x
    for _ in range(depth):
        W = rng.standard_normal((width, width)) * np.sqrt(2 / width)
        y = function(y @ cg.tensor(W))
    dy = rng.standard_normal((16, width))
    y.backward(cg.tensor(dy))
    return np.linalg.norm(x.grad.numpy()) / np.linalg.norm(dy)


def nanoseconds_per_element(function, elements=200_000, repeats=20):
    """(forward, backward), the best of ``repeats``, float32."""
    rng = np.random.default_rng(0)
    x = cg.tensor(rng.standard_normal(elements).astype(np.float32), requires_grad=True)
    dy = cg.tensor(np.ones(elements, np.float32))
    forward, backward = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        y = function(x)
        middle = time.perf_counter()
        y.backward(dy)
        forward.append(middle - start)
        backward.append(time.perf_counter() - middle)
        x.grad = None
    return min(forward) / elements * 1e9, min(backward) / elements * 1e9


def main():
    points = [-6.0, -1.0, -0.1, 0.1, 1.0, 6.0]
    print("value and gradient at   " + "".join(f"{p:>16}" for p in points))
    for name, function in ACTIVATIONS.items():
        pairs = zip(*value_and_gradient(function, points))
        print(f"  {name:22}" + "".join(f"{value:9.4f}{slope:7.4f}" for value, slope in pairs))
    print("\n             gradient left after      ns per element")
    print("              10 layers  30 layers   forward backward")
    for name in LECTURE:
        function = ACTIVATIONS[name]
        after_10, after_30 = (gradient_through_depth(function, depth) for depth in (10, 30))
        forward, backward = nanoseconds_per_element(function)
        print(f"  {name:10} {after_10:11.1e} {after_30:10.1e} {forward:9.2f} {backward:8.2f}")
    print("\nsigmoid: almost nothing is left. ReLU and its relatives keep the gradient's size.")


if __name__ == "__main__":
    main()
