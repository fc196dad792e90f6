"""The training race: ``python -m bench.training`` is ``convgrad bench training``."""

import sys

from convgrad.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["bench", "training", *sys.argv[1:]]))
