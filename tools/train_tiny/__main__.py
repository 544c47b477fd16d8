"""`python -m tools.train_tiny COMMAND`: train (join, pack), write (export, mean) and evaluate the built-in model."""

import argparse
import os
from dataclasses import replace
from pathlib import Path

import torch

from .batches import Pages
from .checkpoint import mean_checkpoint, save_checkpoint
from .curriculum import STAGES
from .evaluate import evaluate_folder
from .held_out import CATEGORIES, MORE_CATEGORIES
from .model import TinySpec
from .packed import WrongPages, pack
from .replicas import ApartError, join_runs
from .train import Trainer, TrainOptions, averaged_model


def spec_of(arguments: argparse.Namespace) -> TinySpec:
    """Return the shipped sizes, with tiles as --tile says."""
    return TinySpec() if arguments.tile is None else replace(TinySpec(), image_size=arguments.tile)


def tile(value: str) -> int:
    """Read the side of a tile: pixels that vision tokens cover without a rest."""
    side, token = int(value), TinySpec().token_pixels
    if side <= 0 or side % token:
        raise argparse.ArgumentTypeError(f"{value} is no multiple of {token}, the pixels that a vision token covers")
    return side


def train(arguments: argparse.Namespace) -> None:
    """Train from the run folder's state, or from nothing; export at the end where asked."""
    options = TrainOptions(
        run_dir=arguments.run_dir,
        seed=arguments.seed,
        steps=arguments.steps,
        decay=arguments.decay,
        warmup=arguments.warmup,
        minutes=arguments.minutes,
        device=arguments.device,
        dtype=arguments.dtype,
        threads=arguments.threads,
        polite=arguments.polite,
        scale=arguments.scale,
        packed=arguments.packed,
        decay_minutes=arguments.decay_minutes,
        bits=arguments.bits,
    )
    trainer = Trainer(options, STAGES, spec_of(arguments))
    state = arguments.run_dir / "state.pt"
    if state.exists():
        try:
            trainer.load(torch.load(state, map_location=arguments.device, weights_only=True))
        except ValueError as error:
            raise SystemExit(f"error: {error}") from error
    elif arguments.start_from:
        trainer.start_from(arguments.start_from, arguments.start_step)
    try:
        trainer.run(arguments.workers)
    except WrongPages as error:
        raise SystemExit(f"error: {error}") from error
    if arguments.export:
        export(arguments)


def join(arguments: argparse.Namespace) -> None:
    """Let runs go on from the mean of their states."""
    try:
        step = join_runs(arguments.run_dirs)
    except (OSError, ApartError) as error:
        raise SystemExit(f"error: {error}") from error
    print(f"{len(arguments.run_dirs)} runs go on from their mean at step {step}")


def pack_pages(arguments: argparse.Namespace) -> None:
    """Render batches beforehand."""
    pages = Pages(STAGES, spec_of(arguments), arguments.seed, arguments.scale)
    try:
        pack(pages, arguments.out, arguments.first_step, arguments.steps, arguments.workers)
    except WrongPages as error:
        raise SystemExit(f"error: {error}") from error


def export(arguments: argparse.Namespace) -> None:
    """Write the averaged weights of the run folder as a checkpoint folder, with the tiles that it was trained in."""
    state = torch.load(arguments.run_dir / "state.pt", map_location="cpu", weights_only=True)
    spec = replace(TinySpec(), image_size=state.get("tile", TinySpec().image_size))
    save_checkpoint(averaged_model(state, spec), spec, arguments.export)


def mean(arguments: argparse.Namespace) -> None:
    """Write the mean of the weights of checkpoint folders as a checkpoint folder."""
    try:
        mean_checkpoint(arguments.folders, arguments.export)
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error


def evaluate(arguments: argparse.Namespace) -> None:
    """Print the error rates of a checkpoint folder on held-out pages, as a Markdown table."""
    torch.set_num_threads(arguments.threads)
    categories = arguments.categories.split(",")
    if unknown := sorted({*categories} - {*CATEGORIES, *MORE_CATEGORIES}):
        known = ", ".join((*CATEGORIES, *MORE_CATEGORIES))
        raise SystemExit(f"error: no category {', '.join(unknown)}; there are {known}")
    print("| category | pages | characters | character error rate | pages without error |")
    print("| --- | --- | --- | --- | --- |")
    for category, score in evaluate_folder(
        arguments.folder, arguments.pages, arguments.seed, categories, arguments.device, arguments.tile
    ):
        rate = f"{score.rate:.2%}" if score.characters else f"{score.errors} read"
        print(f"| {category} | {score.pages} | {score.characters} | {rate} | {score.exact} |", flush=True)


def command_line() -> argparse.ArgumentParser:
    """Return the parser, whose result has what is to be done as `action`."""
    parser = argparse.ArgumentParser(prog="python -m tools.train_tiny", description=__doc__)
    commands = parser.add_subparsers(required=True)

    command = commands.add_parser("train", help="train, resuming from the run folder")
    command.add_argument("--run-dir", type=Path, required=True, help="where the state and the log live")
    command.add_argument("--steps", type=int, default=1_000_000, help="total steps, counted from the very first")
    command.add_argument("--decay", type=int, default=0, help="last steps, over which the learning rate falls to zero")
    command.add_argument("--warmup", type=int, default=100, help="first steps, over which the learning rate rises")
    command.add_argument("--start-from", type=Path, metavar="FOLDER", help="begin with a checkpoint folder's weights")
    command.add_argument("--start-step", type=int, default=0, help="the step at which --start-from begins")
    command.add_argument("--minutes", type=float, default=float("inf"), help="stop after this many minutes")
    command.add_argument("--device", default="cpu", help="cpu or cuda")
    command.add_argument(
        "--dtype", choices=("bfloat16", "float32"), help="of the working weights (default: the faster one)"
    )
    command.add_argument("--threads", type=int, default=2, help="CPU threads of the training process")
    command.add_argument("--polite", action="store_true", help="use one thread while other programs are busy (Linux)")
    command.add_argument("--workers", type=int, default=1, help="processes that render pages")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--scale", type=int, default=1, help="times as many pages a step; 4 for a large GPU")
    command.add_argument("--packed", type=Path, metavar="FOLDER", help="read batches that `pack` has rendered")
    command.add_argument(
        "--decay-minutes", type=float, default=0, help="last of --minutes, over which the learning rate falls to zero"
    )
    command.add_argument(
        "--bits", type=int, choices=(4, 8), default=0, help="show every second step the decoder as q4 or q8 has it"
    )
    command.add_argument("--export", type=Path, help="write the checkpoint folder here at the end")
    command.set_defaults(action=train)

    command = commands.add_parser("join", help="let runs of several seeds go on from the mean of their states")
    command.add_argument("run_dirs", type=Path, nargs="+", metavar="RUN", help="run folders that are at the same step")
    command.set_defaults(action=join)

    command = commands.add_parser("pack", help="render batches beforehand, on several processes")
    command.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    command.add_argument("--first-step", type=int, default=0)
    command.add_argument("--steps", type=int, required=True, help="the step before which it ends")
    command.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: one a core)")
    command.add_argument("--scale", type=int, default=1)
    command.add_argument("--seed", type=int, default=0)
    command.set_defaults(action=pack_pages)

    command = commands.add_parser("export", help="write the run's averaged weights as a checkpoint folder")
    command.add_argument("--run-dir", type=Path, required=True)
    command.add_argument("--export", type=Path, required=True, metavar="FOLDER")
    command.set_defaults(action=export)

    command = commands.add_parser("mean", help="write the mean of the weights of checkpoint folders")
    command.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help="one given twice counts twice")
    command.add_argument("--export", type=Path, required=True, metavar="FOLDER")
    command.set_defaults(action=mean)

    command = commands.add_parser("evaluate", help="measure a checkpoint folder on held-out pages")
    command.add_argument("folder", type=Path)
    command.add_argument("--pages", type=int, default=50, help="pages of each category")
    command.add_argument("--categories", default=",".join(CATEGORIES), help="default: %(default)s")
    command.add_argument("--device", default="cpu", help="cpu or cuda")
    command.add_argument("--threads", type=int, default=2)
    command.add_argument("--seed", type=int, default=1)
    command.set_defaults(action=evaluate)

    for name in ("train", "pack", "evaluate"):
        commands.choices[name].add_argument(
            "--tile",
            type=tile,
            metavar="PIXELS",
            help="side of a tile (default: the shipped one; evaluate: the folder's)",
        )
    return parser


def main() -> None:
    """Parse the command line and do what it says."""
    arguments = command_line().parse_args()
    arguments.action(arguments)


if __name__ == "__main__":
    main()
