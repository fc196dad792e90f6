"""The libraries in the race: each trains a workload behind one small interface.

A peer needs a :class:`Trainer` and a line in PEERS.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

import convgrad
from convgrad.bench.workloads import Workload
from convgrad.extras import require

__all__ = [
    "PEERS",
    "Peer",
    "State",
    "Trainer",
    "peers_of",
    "set_precision",
    "set_threads",
    "trainer",
]

State = Mapping[str, np.ndarray]


class Trainer:
    """One library with PyTorch's interface (``nn``, ``cat``, ``optim``) and one workload.

    ``prepare(model, x)`` may change both, to another layout or to compiled code. ``tensor`` puts an
    array where the model is trained, ``device``. ``capture(step)`` gives a function that does what
    ``step(x, target)`` does, by a CUDA graph.
    """

    def __init__(
        self,
        workload: Workload,
        library: Any,
        tensor: Callable[[np.ndarray], Any],
        state: State | None = None,
        prepare: Callable[[Any, Any], tuple[Any, Any]] = lambda model, x: (model, x),
        device: str = "cpu",
        capture: Callable[[Any], Any] = lambda step: step,
    ) -> None:
        library.manual_seed(0)
        self.module = workload.build(library.nn, library.cat)
        self.module.to(device)
        if state is not None:
            self.module.load_state_dict({name: tensor(value) for name, value in state.items()})
        x, self.target = (tensor(array) for array in workload.batch())
        self.model, self.x = prepare(self.module, x)
        self.loss = library.nn.CrossEntropyLoss()
        self.optimizer = library.optim.SGD(self.module.parameters(), lr=workload.lr, momentum=0.9)
        self.no_grad = library.no_grad
        self.train = capture(self._train)

    def _train(self, x: Any, target: Any) -> Any:
        self.optimizer.zero_grad()
        loss = self.loss(self.model(x), target)
        loss.backward()
        self.optimizer.step()
        return loss

    def step(self) -> float:
        """Trains once; the loss before it."""
        return float(self.train(self.x, self.target).item())

    def infer(self) -> Any:
        """The output, without gradients; of evaluation mode after ``eval()``."""
        with self.no_grad():
            return self.model(self.x)

    def eval(self) -> Trainer:
        self.module.eval()
        return self

    def output(self) -> dict[str, np.ndarray]:
        return {"output": np.array(self.infer().cpu().numpy())}

    def gradients(self) -> dict[str, np.ndarray]:
        return {name: np.array(p.grad.cpu().numpy()) for name, p in self.module.named_parameters()}

    def state(self) -> dict[str, np.ndarray]:
        return {
            name: np.array(value.detach().cpu().numpy())
            for name, value in self.module.state_dict().items()
        }


def trainer(
    workload: Workload, state: State | None = None, device: str = "cpu", captured: bool = False
) -> Trainer:
    """convgrad's."""
    tensor = functools.partial(convgrad.tensor, device=device)
    how: dict[str, Any] = {"capture": convgrad.cuda.capture} if captured else {}
    return Trainer(workload, convgrad, tensor, state, device=device, **how)


def _torch(
    workload: Workload,
    state: State | None,
    device: str,
    layout: bool = False,
    compiled: bool = False,
    captured: bool = False,
) -> Trainer:
    torch = require("torch", "parity")

    def prepare(model: Any, x: Any) -> tuple[Any, Any]:
        if layout:
            last = {4: torch.channels_last, 5: torch.channels_last_3d}[x.ndim]
            model, x = model.to(memory_format=last), x.to(memory_format=last)
        return (torch.compile(model) if compiled else model), x

    def tensor(array: np.ndarray) -> Any:
        return torch.from_numpy(np.array(array)).to(device)

    how: dict[str, Any] = {"capture": TorchGraph} if captured else {}
    return Trainer(workload, torch, tensor, state, prepare, device, **how)


class TorchGraph:
    """A step as a CUDA graph, as PyTorch's manual has it: three steps on a side stream, then a
    capture, then replays on copies of the arguments."""

    warmup = 3

    def __init__(self, step: Callable[[Any, Any], Any]) -> None:
        self.step = step
        self.torch = require("torch")
        self.graph: Any = None

    def __call__(self, *args: Any) -> Any:
        cuda = self.torch.cuda
        if self.warmup > 0:
            self.warmup -= 1
            side = cuda.Stream()
            side.wait_stream(cuda.current_stream())
            with cuda.stream(side):
                loss = self.step(*args)
            cuda.current_stream().wait_stream(side)
            return loss
        if self.graph is None:
            self.args, self.graph = [a.clone() for a in args], cuda.CUDAGraph()
            with cuda.graph(self.graph):
                self.loss = self.step(*self.args)
        for own, given in zip(self.args, args):
            own.copy_(given)
        self.graph.replay()
        return self.loss


def _jax(workload: Workload, state: State | None, device: str) -> Any:
    from convgrad.bench.jax_peer import JaxTrainer

    return JaxTrainer(workload, state)


@dataclass(frozen=True)
class Peer:
    """Another library, or another way to use it.

    ``same_as`` names the peer whose kernels it uses in another order of memory: their difference
    is what float32 leaves open.
    """

    name: str
    package: str
    make: Callable[[Workload, State | None, str], Trainer]  # the last is the device
    suits: Callable[[Workload], bool] = lambda workload: True
    same_as: str | None = None
    compiled: bool = False  # only where asked for: it takes minutes to start
    captured: bool = False  # its training step is a CUDA graph
    all_threads: bool = False  # it uses every processor, and cannot be told otherwise
    devices: tuple[str, ...] = ("cpu", "cuda")


def _has_images(workload: Workload) -> bool:
    return len(workload.input_shape) > 3


# The first one that is installed gives the weights and is what others are compared with.
PEERS = (
    Peer("torch", "torch", _torch),
    Peer(
        "torch channels_last",
        "torch",
        lambda workload, state, device: _torch(workload, state, device, layout=True),
        _has_images,
        same_as="torch",
    ),
    Peer(
        "torch compiled",
        "torch",
        lambda workload, state, device: _torch(workload, state, device, compiled=True),
        compiled=True,
    ),
    Peer(
        "torch captured",
        "torch",
        lambda workload, state, device: _torch(workload, state, device, captured=True),
        same_as="torch",
        captured=True,
        devices=("cuda",),
    ),
    Peer(
        "torch channels_last captured",
        "torch",
        lambda workload, state, device: _torch(workload, state, device, True, captured=True),
        _has_images,
        same_as="torch",
        captured=True,
        devices=("cuda",),
    ),
    Peer("jax", "jax", _jax, all_threads=True, devices=("cpu",)),
)


def peers_of(
    workload: Workload, compiled: bool = False, device: str = "cpu", captured: bool = False
) -> list[Peer]:
    """Those that are installed and can run it with as many threads as convgrad is set to."""
    all_threads = convgrad.get_num_threads() == os.cpu_count()
    return [
        peer
        for peer in PEERS
        if importlib.util.find_spec(peer.package) is not None
        and peer.suits(workload)
        and device in peer.devices
        and (compiled or not peer.compiled)
        and (captured or not peer.captured)
        and (all_threads or not peer.all_threads)
    ]


def set_precision(precision: str) -> None:
    """Of products of float32 on a GPU, for convgrad and PyTorch: "highest" or "tf32"."""
    convgrad.set_float32_precision(precision)
    if importlib.util.find_spec("torch") is not None:
        torch = require("torch")
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        torch.backends.cudnn.allow_tf32 = precision == "tf32"
        torch.backends.cudnn.benchmark = True  # its fastest algorithm, found by trying


def set_threads(n: int) -> None:
    """For convgrad and every peer."""
    convgrad.set_num_threads(n)
    if importlib.util.find_spec("torch") is not None:
        require("torch").set_num_threads(n)
