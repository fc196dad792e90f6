"""Why convolutions: how many parameters a fully connected layer needs, a locally connected one, and
one that shares its weights."""

import math

from convgrad import nn


def count(module):
    """Parameters of a layer."""
    return sum(math.prod(p.shape) for p in module.parameters())


def linear_count(inputs, outputs):
    """What ``count(nn.Linear(inputs, outputs))`` is, without making the layer."""
    return inputs * outputs + outputs


LAYERS = {
    "150 -> 150, fully connected": lambda: nn.Linear(150, 150, bias=False),
    "150 -> 150, each neuron sees 3 inputs": lambda: nn.LocallyConnected1d(
        1, 1, 150, 3, padding=1, bias=False
    ),
    "150 -> 150, and all share the 3 weights": lambda: nn.Conv1d(1, 1, 3, padding=1, bias=False),
    "3x3 convolution, 1 feature map": lambda: nn.Conv2d(1, 1, 3, bias=False),
    "3x3 convolution, 5 feature maps": lambda: nn.Conv2d(1, 5, 3, bias=False),
}


def main():
    print("an image to 10 classes, fully connected, with biases")
    for shape in ((28, 28), (256, 256), (256, 256, 256)):
        inputs = math.prod(shape)
        text = "x".join(map(str, shape))
        print(f"  {text:38} {linear_count(inputs, 10):>12,} parameters")
    print("layers of 150 neurons, and convolutions, without biases")
    for name, layer in LAYERS.items():
        print(f"  {name:38} {count(layer()):>12,} parameters")


if __name__ == "__main__":
    main()
