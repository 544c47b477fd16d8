"""Shows the main job end to end (``tools/dev demo``): export a model, start the server, read a picture.

Everything is the real thing: the exporter and the server run as programs of their own, and the picture goes over HTTP
through the OpenAI Python client, once plain and once streamed. Any failure ends with an exit code other than 0.
"""

from __future__ import annotations

import argparse
import base64
import difflib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openai import OpenAI

from .demo_page import PAGE_TEXT, demo_page

ROOT = Path(__file__).resolve().parents[1]
TINY_OCR = ROOT / "models" / "tiny_ocr" / "model.safetensors"

MAX_TOKENS = 120
READY_SECONDS = 300
STOP_SECONDS = 40
LEAST_SIMILARITY = 0.6  # below this the built-in model has not read the page


class DemoError(Exception):
    """Something did not work; the message says what."""


@dataclass(frozen=True)
class DemoModel:
    """Which model is shown."""

    id: str
    reads: bool  # False: random weights, whose text means nothing
    environment: dict[str, str]
    config: Path


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.demo", description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--random", action="store_true", help="use random weights even where the built-in model is")
    parser.add_argument("--web", action="store_true", help="then open the page in a browser, until Ctrl-C")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="ocr-onnx-demo-"))
    try:
        run(folder, args.device, use_random=args.random or not TINY_OCR.is_file(), web=args.web)
    except (DemoError, subprocess.CalledProcessError) as error:
        print(f"\nDEMO FAILED: {error}", file=sys.stderr)
        return 1
    return 0


def run(folder: Path, device: str, *, use_random: bool, web: bool = False) -> None:
    """Go through all steps.

    Raises
    ------
    DemoError, subprocess.CalledProcessError
        at the first that fails.
    """
    picture = draw_page(folder / "page.png")
    say(f"picture:  {picture}")
    model = random_model(folder) if use_random else built_in_model(folder)
    say(f"model:    {model.id}")
    if not model.reads:
        say("          !! its weights are RANDOM: the text below shows that the path works, and means nothing !!")

    dtype = "f32" if device == "cpu" else "f16"
    export = [sys.executable, "-m", "export", model.id, "--config", str(model.config), "--dtype", dtype]
    say(f"\n$ {' '.join(export[1:])}")
    started = time.monotonic()
    subprocess.run(export, cwd=ROOT, env=model.environment, check=True)
    say(f"exported in {time.monotonic() - started:.1f} s")

    with server(model, device, dtype, folder / "server.log") as url:
        client = OpenAI(base_url=f"{url}/v1", api_key="none needed", timeout=600, max_retries=0)
        plain = read_plain(client, model, picture)
        streamed = read_streamed(client, model, picture)
        if web:
            show_page(url, picture)
    say("the server stopped cleanly")

    if plain != streamed:
        raise DemoError(f"the streamed text differs from the plain one:\n{plain!r}\n{streamed!r}")
    if model.reads:
        similarity = difflib.SequenceMatcher(None, PAGE_TEXT, plain.strip(), autojunk=False).ratio()
        say(f"the page says:\n{indented(PAGE_TEXT)}\nsimilarity {similarity:.0%}")
        if similarity < LEAST_SIMILARITY:
            raise DemoError("the built-in model did not read the page")


def draw_page(path: Path) -> Path:
    """The demonstration's page as a file."""
    demo_page().save(path)
    return path


def built_in_model(folder: Path) -> DemoModel:
    """tiny-ocr, exported into the user's own cache."""
    return DemoModel("tiny-ocr", True, dict(os.environ), write_config(folder, ""))


def show_page(url: str, picture: Path) -> None:
    """Open the server's page, and keep the server until Ctrl-C."""
    opened = webbrowser.open(url)
    say(f"\n{'opened' if opened else 'open'} {url} in a browser; a page to drop there: {picture}\nCtrl-C ends the demo")
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        say("")


def random_model(folder: Path) -> DemoModel:
    """A scaled-down DeepSeek-OCR with random weights, exported into a cache of the demo's own."""
    from tools.checkpoints import write_random_checkpoint

    checkpoint = write_random_checkpoint(folder / "checkpoint")
    source = json.dumps(str(checkpoint))
    config = write_config(folder, f'[models.entries.demo-random]\nkind = "deepseek-ocr"\nsource = {source}\n')
    return DemoModel("demo-random", False, os.environ | {"XDG_CACHE_HOME": str(folder / "cache")}, config)


def write_config(folder: Path, text: str) -> Path:
    """A config.toml of the demo's own: the user's is neither read nor written."""
    path = folder / "config.toml"
    path.write_text(text, encoding="utf-8")
    return path


def free_port() -> int:
    """A port of the loopback interface that nobody listened on just now, for programs that do not take 0."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


@contextmanager
def server(model: DemoModel, device: str, dtype: str, log: Path) -> Iterator[str]:
    """Run the server on a free port of the loopback interface, from ready to stopped; yields its address.

    Raises
    ------
    DemoError
        when it does not become ready, or does not stop with exit code 0 on SIGTERM.
    """
    port = free_port()
    command = [sys.executable, "-m", "server", "--config", str(model.config), "--model", model.id]
    command += ["--device", device, "--dtype", dtype, "--host", "127.0.0.1", "--port", str(port)]
    say(f"\n$ {' '.join(command[1:])}    (log: {log})")
    started = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=model.environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(url, process, log)
        say(f"ready after {time.monotonic() - started:.1f} s at {url}")
        yield url
        process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            raise DemoError(f"the server did not stop within {STOP_SECONDS} s of SIGTERM{tail(log)}") from None
        if code and os.name != "nt":  # Windows has no SIGTERM that a program can answer
            raise DemoError(f"the server ended with exit code {code}{tail(log)}")
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Poll /ready until it answers 200."""
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise DemoError(f"the server ended with exit code {process.returncode} before it was ready{tail(log)}")
        try:
            with urllib.request.urlopen(f"{url}/ready", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise DemoError(f"the server was not ready after {READY_SECONDS} s{tail(log)}")


def question(picture: Path) -> Any:
    """The messages of a chat request: the picture as a data URL, then the prompt."""
    encoded = base64.b64encode(picture.read_bytes()).decode()
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded}"}}
    return [{"role": "user", "content": [image, {"type": "text", "text": "Free OCR."}]}]


def read_plain(client: OpenAI, model: DemoModel, picture: Path) -> str:
    """Ask for the whole answer at once, and show it."""
    started = time.monotonic()
    answer = client.chat.completions.create(
        model=model.id,
        messages=question(picture),
        max_tokens=MAX_TOKENS,
    )
    seconds = time.monotonic() - started
    choice, usage = answer.choices[0], answer.usage
    if usage is None or not usage.prompt_tokens:
        raise DemoError(f"the answer has no usage: {answer}")
    text = choice.message.content or ""
    say(f"\nplain answer ({choice.finish_reason}):\n{indented(text)}")
    say(f"{usage.prompt_tokens} prompt + {usage.completion_tokens} answer tokens in {seconds:.2f} s")
    return text


def read_streamed(client: OpenAI, model: DemoModel, picture: Path) -> str:
    """Ask for the answer piece by piece, and show when the pieces came."""
    started = time.monotonic()
    stream = client.chat.completions.create(
        model=model.id,
        messages=question(picture),
        max_tokens=MAX_TOKENS,
        stream=True,
        stream_options={"include_usage": True},
    )
    pieces: list[str] = []
    first = usage = None
    for chunk in stream:
        usage = chunk.usage or usage
        piece = chunk.choices[0].delta.content if chunk.choices else None
        if piece:
            first = first or time.monotonic() - started
            pieces.append(piece)
    seconds = time.monotonic() - started
    if usage is None:
        raise DemoError("the stream ended without usage")
    when = f"the first after {first:.2f} s, " if first else ""
    say(f"\nstreamed answer: {len(pieces)} pieces, {when}all after {seconds:.2f} s")
    if first and usage.completion_tokens > 1:
        rate = (usage.completion_tokens - 1) / max(seconds - first, 1e-6)
        say(f"{usage.completion_tokens} tokens, {rate:.1f} tokens/s after the first")
    return "".join(pieces)


def indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines()) or "    (no text)"


def tail(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:]
    return "; the end of its log:\n" + "\n".join(lines)


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
