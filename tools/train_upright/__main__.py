"""``python -m tools.train_upright train | measure``: the network that tells pages that stand from turned ones.

train     draws pages and trains on pieces of them (8,000 pages: twenty minutes of one core), writes the network
measure   draws other pages, in fonts and words that training never had, and turns each in all four directions
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from runtime.documents.upright.piece import NETWORK


def main(argv: Sequence[str] | None = None) -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train")
    train.add_argument("-o", "--output", type=Path, default=NETWORK)
    train.add_argument("--pages", type=int, default=2000)
    train.add_argument("--epochs", type=int, default=8)
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--keep", type=Path, default=None, metavar="DIR", help="folder for the drawn pieces")
    measure = commands.add_parser("measure")
    measure.add_argument("--pages", type=int, default=100, help="of each kind; each is shown in four directions")
    measure.add_argument("--kinds", nargs="*", default=None)
    measure.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(argv)
    if args.command == "train":
        from .train import train as run

        run(args.output, args.pages, args.epochs, args.seed, args.keep)
    else:
        from .measure import measure as run_measure
        from .measure import measure_leaning

        for line in run_measure(args.pages, args.seed, args.kinds):
            print(line, flush=True)
        for line in measure_leaning(args.pages, args.seed) if not args.kinds else ():
            print(line, flush=True)


if __name__ == "__main__":
    main()
