"""``convgrad predict RUN FILE...``: what a trained network sees in images or volumes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from convgrad.cli import train
from convgrad.cli.errors import UserError
from convgrad.cli.options import add_machine_options, apply_machine_options

__all__ = ["add_parser", "run"]

FORMATS = """Of a network that segments volumes, it writes the classes of one subject's voxels to
--out, a NIfTI file with the volume's affine; each FILE is a channel (.nii or .nii.gz), in the order
of training. A network trained on the simulated brain expects one T1-weighted volume without skull,
axes towards right, anterior, superior, and voxels of 1 mm (2-D) or 2 mm (3-D).
One trained by tumour --data expects the four sequences T1, T1c, T2, FLAIR.
Of a network trained by cade it prints class, probability and an abnormal slice's box, in pixels;
each FILE is a .npy file of a slice, floats (4, 48, 112): T1, T1c, T2, FLAIR.
Of a network that classifies images it prints a line per image: its path, the class, the
class's probability. An image file (PNG, JPEG, ... whatever pillow reads) is made grey, resized to
the size that the network was trained on, and scaled to [0, 1]. A .npy file holds one image (H, W),
uint8 in 0..255 or float in [0, 1]; it is resized too. The networks learned bright strokes on a dark
ground: for dark ink on bright paper add --invert."""


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "predict",
        help="classify images or segment a volume with a trained network",
        description=FORMATS.replace("\n", " "),
    )
    parser.add_argument("folder", type=Path, metavar="RUN", help="a run folder")
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="image or volume")
    parser.add_argument("--invert", action="store_true", help="the images are dark on bright")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where to write a segmentation")
    add_machine_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints what the network of the run says about each file, as its family of tasks does."""
    apply_machine_options(args)
    config, family, model = train.open_run(args.folder)
    if not hasattr(family, "predict"):
        raise UserError(f"a network trained on {config['task']} has nothing to say about files")
    family.predict(args, config, model.to(args.device))
    return 0
