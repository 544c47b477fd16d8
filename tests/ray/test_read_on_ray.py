"""``ocr-onnx read --ray`` with the built-in model: what comes out is what comes out without Ray."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.command.conftest import Program, ocr, run, tiny_home
from tools.demo_page import demo_page

__all__ = ["ocr", "tiny_home"]  # fixtures


def words(out: Path) -> dict[str, bytes]:
    """All that was written but seconds: the run manifest and what JSON says of them."""
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.suffix in (".md", ".jpg")}


@pytest.mark.ray
def test_a_folder_gives_the_same_bytes_and_exit_code_with_ray_and_without(tiny_home: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'ocr-onnx[ray]'")
    scans = tmp_path / "in"
    scans.mkdir()
    page = demo_page()
    page.save(scans / "one.png")
    page.save(scans / "two.pdf", save_all=True, append_images=[page.crop((0, 0, page.width, page.height // 2))])
    (scans / "broken.pdf").write_bytes(b"%PDF-1.7 and no more")
    flags = ("--model", "tiny-ocr", "--threads", "1", "--overlay", "--max-new-tokens", "200")
    assert run(tiny_home, "read", scans, "-o", tmp_path / "plain", *flags).returncode == 1
    done = run(tiny_home, "read", scans, "-o", tmp_path / "ray", *flags, "--ray", "local")
    assert done.returncode == 1, done.stderr
    assert "broken.pdf" in done.stderr
    assert words(tmp_path / "ray") == words(tmp_path / "plain")
    assert len(words(tmp_path / "ray")) == 5  # two documents, three overlays
    entries = [json.loads(line) for line in (tmp_path / "ray/ocr-run.jsonl").read_text().splitlines()]
    assert [entry["state"] for entry in entries if entry["type"] == "page"] == ["done"] * 3
    # All is there: what goes on from it has nothing to read, with Ray or without.
    again = run(tiny_home, "read", scans, "-o", tmp_path / "ray", *flags, "--resume")
    assert "0 pages to read" in again.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--ray", "a.pdf"), "no address"),
        (("--ray", "ray://head:10001"), "ray job submit"),
        (("--actors", "2"), "--actors belongs to --ray"),
        (("--ray", "--server", "http://here"), "leave one out"),
        (("--ray", "--jobs", "3"), "--actors and --slots"),
        (("--ray", "--device", "cuda:1"), "say --device cuda"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(ocr: Program, flags: tuple[str, ...], message: str) -> None:
    assert ocr("read", "some.png", "-o", "out", *flags) == 2
    assert message in ocr.err


def test_without_ray_the_message_names_what_to_install(
    ocr: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from server.ray import cluster

    demo_page().save(tmp_path / "a.png")
    monkeypatch.setattr(cluster.importlib.util, "find_spec", lambda name: None)
    assert ocr("read", tmp_path / "a.png", "-o", "out", "--model", "tiny-ocr", "--ray") == 2
    assert "pip install 'ocr-onnx[ray]'" in ocr.err
