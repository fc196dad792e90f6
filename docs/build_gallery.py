"""Builds docs/gallery.md and docs/images/ from the example runs:

    python docs/build_gallery.py             # everything; trains what is not in runs/gallery yet
    python docs/build_gallery.py filters     # only what one task shows; the page names them all
    python docs/build_gallery.py --runs DIR  # where the run folders are, or are to be

Needs the extras 'demo' and 'medical'. All runs are the commands' defaults, seed 0.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import convgrad as cg
import convgrad.functional as F
from convgrad import viz

DOCS = Path(__file__).parent
IMAGES = DOCS / "images"
LIMIT = 1_500_000  # bytes of all pictures
INTRODUCTION = """# Gallery

What convgrad draws, as `python docs/build_gallery.py` built it. A run folder holds such pictures of
your own runs; the functions are those of `convgrad.viz`.
"""


@dataclass(frozen=True)
class Picture:
    """``file`` is what the run folder calls it; ``alt`` says what is to be seen."""

    file: str
    alt: str


@dataclass(frozen=True)
class Section:
    """The pictures of a run; or the one that ``draw(path)`` draws, returning further Markdown."""

    name: str
    title: str
    text: str
    pictures: tuple[Picture, ...]
    options: tuple[str, ...] = ()  # of convgrad train NAME
    draw: Callable[[Path], str] | None = None

    def command(self) -> str:
        return " ".join(("convgrad train", self.name, *self.options))


def draw_activations(path: Path) -> str:
    viz.activations(path, title="Activations and their gradients")
    return ""


def draw_graph(path: Path) -> str:
    """The slides' network, weights and sample drawn once."""
    rng = np.random.default_rng(0)
    W0, W1, w = (
        cg.tensor(rng.standard_normal(shape), requires_grad=True) for shape in ((2, 3), (2, 2), 2)
    )
    x, t = cg.tensor(rng.standard_normal(3)), cg.tensor(np.array(1.0))
    with viz.record() as tape:
        y = F.sigmoid(w @ F.sigmoid(W1 @ F.sigmoid(W0 @ x)))
        loss = F.binary_cross_entropy(y, t)
    graph = tape.graph(loss, {"W0": W0, "W1": W1, "w": w, "x": x, "y": y, "t": t})
    graph.draw(path, "l(y(x), t), forwards; the chain rule goes back up")
    return f"```mermaid\n{graph.mermaid()}```\n\n```\n{graph}\n```\n"


GRAPH_CODE = """```python
with viz.record() as tape:
    y = F.sigmoid(w @ F.sigmoid(W1 @ F.sigmoid(W0 @ x)))
    loss = F.binary_cross_entropy(y, t)
graph = tape.graph(loss, {"W0": W0, "W1": W1, "w": w, "x": x, "y": y, "t": t})
graph.draw("graph.png")  # print(graph.mermaid()), print(graph), graph["A"].gradient
```"""

SECTIONS = (
    Section(
        "activations",
        "Activations",
        "`viz.activations(path)`. Every curve and every gradient is computed by convgrad's tape. "
        "Where the ground is shaded, the neuron is saturated: what comes before it learns nothing.",
        (Picture("curves.png", "nine activation functions with their gradients"),),
        draw=draw_activations,
    ),
    Section(
        "graph",
        "The graph of a loss",
        "The lecture's network and its loss: every intermediate value under the slides' letters, "
        "and the gradient that came back to it, as a drawing, as Mermaid text and as a table.\n\n"
        + GRAPH_CODE,
        (Picture("loss.png", "the computational graph of the lecture's loss, A to E"),),
        draw=draw_graph,
    ),
    Section(
        "digits",
        "Digits",
        "1,797 handwritten digits: learning curves, the confusion matrix of the 540 test images, "
        "the first layer's filters, what these answer to five digits, and which parts of a digit "
        "speak for its class (Grad-CAM).",
        (
            Picture("learning_curves.png", "loss and accuracy by epoch"),
            Picture("confusion_matrix.png", "confusion matrix of the ten digits"),
            Picture("filters.png", "32 filters of 3x3 weights"),
            Picture("feature_maps.png", "feature maps of five digits"),
            Picture("heat_maps.png", "heat maps over ten digits"),
        ),
    ),
    Section(
        "texture",
        "Texture",
        "Brick, grass or gravel, from patches of three photographs: nothing tells them apart but "
        "what convolutions see close by.",
        (
            Picture("filters.png", "16 filters of 3x3 weights"),
            Picture("feature_maps.png", "feature maps of a patch of brick, grass and gravel"),
        ),
    ),
    Section(
        "filters",
        "Filters without labels",
        "Lee's convolutional deep belief network on whitened photographs. Nobody told it what an "
        "edge is: most filters become short edges and bars of one orientation (the maps show where "
        "in four held-out crops they answer). Those of the second layer join them to longer lines "
        "and arcs.",
        (
            Picture("filters.png", "24 filters of 10x10 weights, most of them oriented edges"),
            Picture("feature_maps.png", "probabilities of 24 pooling maps in four crops"),
            Picture("filters_layer2.png", "what the 40 filters of the second layer stand for"),
        ),
    ),
    Section(
        "tissue",
        "Tissue",
        "Cerebrospinal fluid, grey and white matter of the MNI152 template (one average brain) "
        "under simulated noise and bias field, in slices that were not trained on.",
        (
            Picture("learning_curves.png", "loss, and Dice of the validation slices, by epoch"),
            Picture("overlays.png", "six slices with true and predicted tissues"),
        ),
    ),
    Section(
        "cade",
        "Lesions classified, boxed and grown",
        "Simulated lesions on the template: boxes of the second stage, the maps by which the first "
        "stage decided, and what GrowCut makes of the boxes.",
        (
            Picture("boxes.png", "twelve slices with true and predicted boxes"),
            Picture("heat_maps.png", "class activation maps of the same slices"),
            Picture("grow_cut.png", "six slices with true and grown lesions"),
        ),
    ),
    Section(
        "tumour",
        "Tumours in two phases",
        "Core, enhancing rim and edema of simulated lesions by Havaei's networks. After phase 1, "
        "on balanced patches, they see tumour in many places; phase 2 teaches them how rare it is.",
        (Picture("overlays.png", "five slices, thresholds and two networks after both phases"),),
    ),
)


def run_folder(section: Section, runs: Path) -> Path:
    """The run's folder; trains if it is not there, or was left by a run that was interrupted."""
    folder = runs / section.name
    if not (folder / "model.safetensors").exists():
        shutil.rmtree(folder, ignore_errors=True)
        command = [*section.command().split()[1:], "--out", str(folder)]
        print("convgrad", *command, flush=True)
        subprocess.run([sys.executable, "-m", "convgrad", *command], check=True)
    return folder


def page(section: Section, more: str) -> str:
    """The section's Markdown."""
    command = "" if section.draw else f"```\n{section.command()}\n```"
    images = [f"![{p.alt}](images/{section.name}_{p.file})" for p in section.pictures]
    parts = [f"## {section.title}", section.text, command, *images, more.rstrip()]
    return "\n\n".join(part for part in parts if part) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Builds docs/gallery.md and docs/images/.")
    parser.add_argument("names", nargs="*", metavar="SECTION", help="renew only these pictures")
    parser.add_argument("--runs", type=Path, default=Path("runs/gallery"), metavar="DIR")
    args = parser.parse_args()
    names = args.names or [section.name for section in SECTIONS]
    IMAGES.mkdir(exist_ok=True)
    text = INTRODUCTION
    for section in SECTIONS:
        targets = [IMAGES / f"{section.name}_{picture.file}" for picture in section.pictures]
        more = ""
        if section.draw is not None:
            more = section.draw(targets[0])
        elif section.name in names:
            folder = run_folder(section, args.runs)
            for picture, target in zip(section.pictures, targets):
                shutil.copyfile(folder / picture.file, target)
        text += "\n" + page(section, more)
    (DOCS / "gallery.md").write_text(text, encoding="utf-8")
    sizes = [path.stat().st_size for path in IMAGES.iterdir()]
    print(f"{len(sizes)} pictures, {sum(sizes) / 1000:.0f} kB")
    if sum(sizes) > LIMIT:
        sys.exit(f"docs/images must stay below {LIMIT} bytes. Got {sum(sizes)}.")


if __name__ == "__main__":
    main()
