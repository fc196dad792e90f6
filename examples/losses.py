"""The lecture's losses and the output layer that each goes with: 2 classes with a sigmoid and
binary cross-entropy, K classes with a softmax and cross-entropy, and the hinge loss."""

import numpy as np

import convgrad as cg
import convgrad.functional as F


def two_class(scores, targets):
    """sum of -t ln y - (1 - t) ln(1 - y), y = sigmoid(score): loss and d(loss)/d(score)."""
    s = cg.tensor(scores, requires_grad=True)
    loss = F.binary_cross_entropy(F.sigmoid(s), cg.tensor(targets), reduction="sum")
    loss.backward()
    return loss.item(), s.grad.numpy()


def k_class(scores, classes):
    """sum of -ln y_t, y = softmax(scores (N, K)): loss and d(loss)/d(scores)."""
    s = cg.tensor(scores, requires_grad=True)
    loss = F.cross_entropy(s, cg.tensor(classes), reduction="sum")
    loss.backward()
    return loss.item(), s.grad.numpy()


def hinge(scores, signs):
    """mean of max(0, 1 - t y), t in {-1, 1}: loss and d(loss)/d(score)."""
    s = cg.tensor(scores, requires_grad=True)
    loss = F.hinge_loss(s, cg.tensor(signs))
    loss.backward()
    return loss.item(), s.grad.numpy()


def main():
    np.set_printoptions(precision=4, suppress=True)
    scores = np.array([2.0, -1.2, 0.3])
    loss, gradient = two_class(scores, np.array([1.0, 0.0, 0.0]))
    print(f"2 classes, scores {scores}, targets 1 0 0")
    print(f"  loss {loss:.4f}, gradient {gradient} = sigmoid(score) - target")

    table = np.array([[2.0, 0.5, -1.0], [0.1, 0.2, 3.0]])
    loss, gradient = k_class(table, np.array([0, 1]))
    print("3 classes, scores [2, .5, -1] and [.1, .2, 3], targets class 0 and class 1")
    print(f"  loss {loss:.4f}, gradient = softmax(scores) - one-hot target:")
    print(f"  {gradient[0]}  (right: small)")
    print(f"  {gradient[1]}  (wrong: large)")

    loss, gradient = hinge(scores, np.array([1.0, -1.0, -1.0]))
    print(f"hinge, scores {scores}, targets 1 -1 -1")
    print(f"  loss {loss:.4f}, gradient {gradient}: none where the margin t y is 1 or more")

    two, _ = k_class(np.stack([np.zeros(3), scores], 1), np.array([1, 0, 0]))
    print(f"2 classes written as K = 2, scores (0, s): the same loss, {two:.4f}")


if __name__ == "__main__":
    main()
