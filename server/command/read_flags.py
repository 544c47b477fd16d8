"""The flags of ``ocr-onnx read``, and how their values are parsed."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.config import Config
from models.extraction import schema_text
from models.family import IMAGE_SLOT
from models.model_errors import InvalidInput
from runtime.documents import DEFAULT_DPI, SHOWN_PIXELS
from server import flags
from server.options import ServerOptions, given_options

from ..writers import FORMATS
from . import on_ray
from .command_errors import UsageError
from .target import ENDINGS, format_list, one_of

# Pages are read to their end; the server's default is for clients that set their own limit.
READ_DEFAULTS: Mapping[str, Any] = {"max_new_tokens": 8192}
_MOST_SECONDS = 1_000_000  # more than any page takes, and less than a socket's limit

PASSWORD_VARIABLE = "OCR_ONNX_PDF_PASSWORD"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add all flags of ``read``. Flags of the model and its settings are absent from the result when not given."""
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="file, folder, quoted pattern, address (s3://, gs://, az://, https:// ...), or - for stdin",
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        default=None,
        help=f"folder for the results; for a single document also a file that ends in {one_of(ENDINGS)}",
    )
    output.add_argument("--format", metavar="LIST", default=None, type=format_list,
                        help=f"{', '.join(FORMATS)}, or several with commas between (default: md)")  # fmt: skip
    output.add_argument(
        "--pdf-a", action="store_true", default=False, help="write PDF as PDF/A-2b: pages are pictures with their text"
    )
    output.add_argument(
        "--overlay", action="store_true", default=False, help="write each page with its boxes drawn, to overlays/"
    )
    output.add_argument(
        "--join-tables", action="store_true", default=False, help="write tables that go on on the next page as one"
    )
    output.add_argument(
        "--force", action="store_true", default=False, help="replace result files that this program has not made"
    )
    output.add_argument(
        "--min-confidence",
        type=probability,
        metavar="P",
        default=0.0,
        help="mark pages whose tokens have a lower mean probability, from 0 to 1, as doubtful (default: 0, none)",
    )
    output.add_argument("--quiet", action="store_true", default=False, help="no progress bar, no summary; errors only")
    what = parser.add_argument_group("what to read")
    what.add_argument(
        "--no-follow", action="store_true", default=False, help="do not look into linked folders (default: once each)"
    )
    what.add_argument("--pages", metavar="LIST", default=None, help="pages of each document, such as 1-5,9 or 12-")
    what.add_argument(
        "--dpi",
        type=int,
        metavar="N",
        default=None,
        help=f"dots per inch at which the pages of a PDF are drawn (default: {DEFAULT_DPI}, and no page larger than "
        f"twice what the model sees, or {SHOWN_PIXELS // 1_000_000} megapixels)",
    )
    what.add_argument(
        "--password",
        metavar="TEXT",
        default=None,
        help=f"what opens encrypted PDFs; better in the environment, as {PASSWORD_VARIABLE}",
    )
    what.add_argument(
        "--task",
        metavar="NAME",
        default=None,
        help="what to ask: markdown, ocr, ... (ocr-onnx models lists each model's; default: the model's)",
    )
    what.add_argument(
        "--prompt",
        metavar="TEXT",
        default=None,
        help="a prompt of your own, or the words that the task is about (--task locate)",
    )
    what.add_argument(
        "--raw", action="store_true", default=False, help="the text as the model writes it: tables as OTSL ..."
    )
    what.add_argument(
        "--schema", type=Path, metavar="FILE", default=None,
        help="a JSON schema that each page's answer follows, for models that can be asked for fields",
    )  # fmt: skip
    what.add_argument("--prompt-file", type=Path, metavar="FILE", default=None, help="the prompt, from a file")
    going_on = parser.add_argument_group("going on")
    going_on.add_argument(
        "--resume",
        action="store_true",
        default=False,
        help="keep what an earlier run into OUT has read, with the same model and settings; read what is missing",
    )
    going_on.add_argument(
        "--retry-failed",
        action="store_true",
        default=False,
        help="read the pages that failed once more, and documents that could not be opened, with other settings too; "
        "without --resume nothing else",
    )
    going_on.add_argument(
        "--jobs",
        type=_count,
        metavar="N",
        default=None,
        help="pages in flight (default: the model's slots; with --server 4)",
    )
    remote = parser.add_argument_group("a running server instead of a model in this process")
    remote.add_argument("--server", metavar="URL", default=None, help="address of a server, such as http://gpu:8000")
    remote.add_argument(
        "--api-key", metavar="KEY", default=None, help="its API key; better in the environment, as OCR_ONNX_API_KEY"
    )
    remote.add_argument(
        "--retries",
        type=_count_or_none,
        metavar="N",
        default=8,
        help="how often a page is sent again when the server is busy or away (default: 8)",
    )
    remote.add_argument(
        "--timeout",
        type=_seconds,
        metavar="S",
        default=600.0,
        help="seconds of silence after which the server counts as gone (default: 600)",
    )
    on_ray.add_arguments(parser)
    flags.add_model_flags(parser.add_argument_group("model"), "model to read with; with --server one of its own")
    machine = parser.add_argument_group("machine")
    flags.add_server_flags(machine, "slots", "threads", "max_image_megapixels", "page_timeout", "stale_exports")
    flags.add_setting_flags(parser.add_argument_group("decoding"), READ_DEFAULTS)


def password_of(given: Mapping[str, Any]) -> str | None:
    """The password of encrypted PDFs."""
    password: str | None = given["password"]
    return password if password is not None else os.environ.get(PASSWORD_VARIABLE)


def prompt_of(given: Mapping[str, Any]) -> str | None:
    """The user's own prompt; raises UsageError for a prompt that cannot be taken."""
    prompt: str | None = given["prompt"]
    file: Path | None = given["prompt_file"]
    if file is not None:
        if prompt is not None:
            raise UsageError("--prompt and --prompt-file say the same thing; leave one out")
        try:
            prompt = file.expanduser().read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--prompt-file {file} cannot be read: {error}") from error
    if prompt is not None and not prompt.strip():
        raise UsageError("the prompt is empty; leave it out for the model's default task")
    if prompt is not None and prompt.count(IMAGE_SLOT) > 1:
        raise UsageError(f"the prompt has {prompt.count(IMAGE_SLOT)} {IMAGE_SLOT} slots; a page takes one")
    return prompt


def schema_of(file: Path | None) -> str | None:
    """JSON text of the schema in a file; raises UsageError for a file without a valid schema."""
    if file is None:
        return None
    try:
        return schema_text(file.expanduser().read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, InvalidInput) as error:
        raise UsageError(f"--schema {file} cannot be taken: {error}") from error


def options_of(config: Config, given: Mapping[str, Any], inference: Mapping[str, Any]) -> ServerOptions:
    """Options of models and pages. inference : settings that are given as flags."""
    return given_options(config, {**given, "vision_cache_mb": 0.0}, inference)  # no page is read twice


def _count(text: str) -> int:
    value = _count_or_none(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected an integer of at least 1, found {text!r}")
    return value


def _count_or_none(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected an integer, 0 or more, found {text!r}")
    return int(text)


def probability(text: str) -> float:
    """A probability from a flag's text; raises ArgumentTypeError."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, found {text!r}")
    return value


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= _MOST_SECONDS:
        raise argparse.ArgumentTypeError(f"expected seconds, above 0 and at most {_MOST_SECONDS}, found {text!r}")
    return value
