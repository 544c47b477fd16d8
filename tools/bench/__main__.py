"""The command line: ``python -m tools.bench``."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import psutil

from models.model_errors import ModelError
from tools.reference_family import registration_of

from . import cluster
from . import llama as llama_cpp
from .answer import FullAttention
from .exporting import ExportContender
from .layout import DetectorContender
from .ours import Ours
from .plan import CUDA, KINDS, PARTS, QUICK, Kind, Part, Plan
from .report import Results, compare, machine, merge, render, rivals, today, versions
from .serving import Server
from .turns import BenchError, Contender, groups_in_memory, measure

DESCRIPTION = """\
Measure the runtime, alone or beside transformers and llama.cpp on the same weights.

Other load on a machine changes every figure by up to three times, so contenders are measured in turns: one sample
each, then the next round. Read the ratios; the figures themselves hold for this machine at this moment.
"""
EXAMPLES = """\
examples:
  python -m tools.checkpoints CK --full --tokenizer tokenizer.json    a full-size checkpoint, every weight random
  python -m tools.bench build-llama ~/llama                           llama.cpp from PyPI, about 10 minutes
  python -m tools.bench run --full CK --dtypes q4,q8 --peers transformers,llama --llama ~/llama --json now.json
  python -m tools.bench run --model ~/.cache/deepseek-ocr/models/tiny-ocr/onnx/f32 --parts load,vision,decode,page
  python -m tools.bench compare before.json now.json
"""
PEERS = ("transformers", "llama")


def build_parser() -> argparse.ArgumentParser:
    """All commands and flags."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m tools.bench", description=DESCRIPTION, epilog=EXAMPLES, formatter_class=form
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="measure and print tables", description=DESCRIPTION, formatter_class=form)
    _add_subjects(run)
    run.add_argument("--parts", type=_list_of(PARTS), default=PARTS, metavar="LIST", help=f"of {','.join(PARTS)} (all)")
    run.add_argument(
        "--rounds",
        type=int,
        default=5,
        metavar="N",
        help="samples of each case; the server's, which has many pages in each, a third of them (default: 5)",
    )
    run.add_argument("--json", type=Path, metavar="OUT", help="write every sample; kept up to date after each part")
    run.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="where ours and transformers compute; cuda has cases of its own, of up to 64 rows and clients",
    )
    run.add_argument("--quick", action="store_true", help="tiny cases: shows that all works, measures nothing")
    run.add_argument(
        "--ray", type=int, nargs="?", const=200, metavar="PAGES",
        help="measure nothing but read --ray: pages a minute of tiny-ocr with one and two actors, beside one engine",
    )  # fmt: skip

    prepare = commands.add_parser("prepare", help="make the exports and peers' files that run would make first")
    _add_subjects(prepare)

    shown = commands.add_parser("show", help="print the tables of one or several runs on the same machine again")
    shown.add_argument("files", type=Path, nargs="+", metavar="JSON")

    compared = commands.add_parser("compare", help="what changed between two runs")
    compared.add_argument("before", type=Path)
    compared.add_argument("after", type=Path)

    build = commands.add_parser(
        "build-llama", help="llama.cpp's programs from llama-cpp-python's source on PyPI",
        description=f"Download {llama_cpp.PACKAGE} {llama_cpp.VERSION} from PyPI and build "
        f"{' and '.join(llama_cpp.TARGETS)}. Needs CMake and a C++ compiler.",
    )  # fmt: skip
    build.add_argument("folder", type=Path, metavar="DIR")
    build.add_argument("--jobs", type=int, default=psutil.cpu_count() or 1, metavar="N")
    return parser


def _add_subjects(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", type=Path, action="append", default=[], metavar="FOLDER", help="an exported model; may be repeated"
    )
    parser.add_argument(
        "--full", type=Path, metavar="CHECKPOINT", help="a checkpoint, for exports and peers (tools.checkpoints --full)"
    )
    parser.add_argument(
        "--dtypes",
        type=_list_of(("f32", "f16", "bf16", "q8", "q4")),
        default=("q4", "q8"),
        metavar="LIST",
        help="exports of CHECKPOINT to measure (default: q4,q8)",
    )
    parser.add_argument(
        "--vision-dtype",
        choices=("f32", "f16", "bf16", "q8"),
        default="q8",
        help="vision tower of the q4 and q8 exports (default: q8)",
    )
    parser.add_argument(
        "--exports", type=Path, metavar="DIR", help="where the exports are, or will be made (default: in WORK)"
    )
    parser.add_argument(
        "--peers", type=_list_of(PEERS), default=(), metavar="LIST", help="transformers,llama (default: none)"
    )
    parser.add_argument(
        "--torch-dtypes",
        type=_list_of(("f32", "bf16")),
        default=("f32", "bf16"),
        metavar="LIST",
        help="of transformers (default: f32,bf16)",
    )
    parser.add_argument(
        "--attention",
        choices=("auto", "eager", "sdpa"),
        default="auto",
        help="of transformers (default: auto, for each case the faster of the two)",
    )
    parser.add_argument("--llama", type=Path, metavar="DIR", help="what build-llama made (default: the PATH)")
    parser.add_argument(
        "--work", type=Path, metavar="DIR", help="for exports and GGUF files (default: CHECKPOINT-bench)"
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=psutil.cpu_count(logical=False) or 1,
        metavar="N",
        help="of every contender (default: one for each core)",
    )
    parser.add_argument(
        "--layout", type=Path, metavar="FOLDER", help="an exported layout detector, for the part layout"
    )
    parser.add_argument(
        "--layout-checkpoint",
        type=Path,
        metavar="CHECKPOINT",
        help="what that export was made of (tools.layout_checkpoints --full): the same in transformers, beside it",
    )
    parser.add_argument(
        "--memory", type=float, metavar="GB", help="for contenders measured in turns (default: what is free)"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, or 1 after an error that was explained on standard error."""
    args = build_parser().parse_args(argv)
    try:
        match args.command:
            case "run" if args.ray:
                cluster.run("tiny-ocr", 2 if args.quick else args.ray, 1 if args.quick else args.rounds, tell)
            case "run":
                run(args)
            case "prepare":
                plan = Plan()
                _ours(args)
                _peers(args, plan)
            case "show":
                print(render(merge([Results.load(file) for file in args.files])))
            case "compare":
                print(compare(Results.load(args.before), Results.load(args.after)))
            case "build-llama":
                found = llama_cpp.build(args.folder, args.jobs, tell)
                tell(f"built {found.bench} ({found.version})")
    except (BenchError, ModelError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def run(args: argparse.Namespace) -> Results:
    """Measure part by part; print and save what was found."""
    plan = QUICK if args.quick else Plan()
    if args.device == "cuda":
        plan = replace(QUICK, device="cuda") if args.quick else CUDA
    options = {name: _plain(value) for name, value in vars(args).items()}
    results = Results(machine(), versions(), today(), options)
    started = time.monotonic()

    def note(line: str) -> None:
        tell(f"[{time.monotonic() - started:5.0f} s] {line}")
        if line.startswith("NOT MEASURED"):
            results.notes.append(line)

    if "export" in args.parts and args.full is not None:
        exports: list[Contender] = [
            ExportContender(args.full, dtype, _vision_dtype(args, dtype), _exports(args) / dtype)
            for dtype in args.dtypes
        ]
        results.series += measure(exports, list(plan.cases("export")), 1, note)
        _save(results, args.json)
    folders = _ours(args) if set(args.parts) - {"layout"} or not args.layout else []
    peers, found = _peers(args, plan)
    if found is not None:
        results.versions["llama.cpp"] = found.version
    ours = [Ours(folder, args.threads, plan) for folder in folders]
    kinds: dict[Kind, list[Part]] = {}
    for part in args.parts:
        if part in KINDS:
            kinds.setdefault(KINDS[part], []).append(part)
    number = 0
    measured: set[tuple[Part, str]] = set()  # a part that peers have no part in is measured once, not in every group
    for kind, parts in kinds.items():
        cases = [case for part in parts for case in plan.cases(part)]
        own = [
            *_distinct(ours, kind),
            *_detectors(args, plan),
            *(FullAttention(folder, args.threads, plan) for folder in folders),
        ]
        able = [one for one in [*own, *peers] if any(one.can(case) for case in cases)]
        available = int(args.memory * 1e9) if args.memory else psutil.virtual_memory().available
        for group in groups_in_memory(able, kind, rivals, available):
            number += 1
            for part in parts:  # in turns within a part; from part to part everything stays loaded
                part_cases = list(plan.cases(part))
                names = [one.name(kind) for one in group if any(one.can(case) for case in part_cases)]
                if {(part, name) for name in names} <= measured:
                    continue
                measured |= {(part, name) for name in names}
                note(f"{part}: {', '.join(names)} in turns")
                results.series += measure(group, part_cases, args.rounds, note, number=number)
                _save(results, args.json)
            for one in group:
                one.close()
    if "server" in args.parts:
        for folder in folders:
            server = Server(folder, args.threads, plan)
            try:
                results.series += measure([server], list(plan.cases("server")), max(1, args.rounds // 3), note)
            finally:
                server.close()
            _save(results, args.json)
    note("done")
    print(render(results))
    return results


def _ours(args: argparse.Namespace) -> list[Path]:
    """Folders to measure; exports of the checkpoint are made where they are missing."""
    folders = list(args.model)
    if args.full is not None:
        for dtype in args.dtypes:
            folder = _exports(args) / dtype
            if not (folder / "manifest.json").is_file():
                tell(f"exporting {folder}")
                export = ExportContender(args.full, dtype, _vision_dtype(args, dtype), folder)
                export.sample(next(Plan().cases("export")))
            folders.append(folder)
    if not folders:
        raise BenchError("nothing to measure: name an export with --model or a checkpoint with --full")
    return folders


def _peers(args: argparse.Namespace, plan: Plan) -> tuple[list[Contender], llama_cpp.Llama | None]:
    """Peers that were asked for and are installed. For a peer that is missing, an error says how to get it."""
    peers: list[Contender] = []
    found: llama_cpp.Llama | None = None
    if args.peers and args.full is None:
        raise BenchError("peers need the checkpoint that the export came from: --full CHECKPOINT")
    if "transformers" in args.peers:
        try:
            import transformers  # noqa: F401

            from .transformers_peer import TransformersPeer
        except ImportError as error:
            raise BenchError(f"transformers is missing ({error}): pip install 'ocr-onnx[export]'") from error
        peers += [TransformersPeer(args.full, dtype, args.threads, plan, args.attention) for dtype in args.torch_dtypes]
    if "llama" in args.peers:
        if (family := registration_of(args.full).id) != "deepseek-ocr":
            raise BenchError(f"the llama.cpp peer knows DeepSeek-OCR only; {args.full} is {family}")
        found = llama_cpp.find(args.llama)
        page_files: tuple[Path, Path] | None = None
        try:
            page_files = llama_cpp.convert(found, args.full, _work(args), tell) if found.page else None
        except BenchError as error:
            tell(f"no pages with llama.cpp: {error}")
        for dtype, type_name in (("q4", "Q4_0"), ("q8", "Q8_0")):
            if dtype in args.dtypes or args.model:
                file = llama_cpp.decoder_file(args.full, type_name, _work(args), tell)
                pages = page_files if type_name == "Q8_0" else None
                peers.append(llama_cpp.LlamaPeer(found, type_name, file, args.threads, plan, pages))
    return peers, found


def _detectors(args: argparse.Namespace, plan: Plan) -> list[Contender]:
    """Contenders of the part layout."""
    found: list[Contender] = []
    if args.layout is not None:
        found.append(DetectorContender(args.threads, plan, folder=args.layout.resolve()))
    if args.layout_checkpoint is not None and plan.device == "cpu":
        found.append(DetectorContender(args.threads, plan, checkpoint=args.layout_checkpoint.resolve()))
    return found


def _distinct(ours: Sequence[Ours], kind: Kind) -> list[Ours]:
    """Exports that differ for this kind. Of several exports with the same vision tower, the first is measured."""
    return list({one.name(kind): one for one in reversed(ours)}.values())[::-1]


def _work(args: argparse.Namespace) -> Path:
    folder: Path = args.work or args.full.with_name(args.full.name + "-bench")
    return folder.resolve()


def _exports(args: argparse.Namespace) -> Path:
    folder: Path = args.exports or _work(args) / "exports"
    return folder.resolve()


def _vision_dtype(args: argparse.Namespace, dtype: str) -> str | None:
    return args.vision_dtype if dtype in ("q4", "q8") else None


def _save(results: Results, path: Path | None) -> None:
    if path is not None:
        results.save(path)


def _list_of(known: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    def convert(text: str) -> tuple[str, ...]:
        names = tuple(name.strip() for name in text.split(",") if name.strip())
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {','.join(known)}")
        return names

    return convert


def _plain(value: object) -> object:
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value


def tell(line: str) -> None:
    """Progress goes to standard error; standard output has the tables only."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
