"""Documents and results behind addresses: fsspec's memory file system, and a web server on this machine."""

from __future__ import annotations

import functools
import http.server
import importlib.util
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from server.command import buckets
from server.command.command_errors import UsageError
from tests.command.conftest import Program, failing, page_of

BUCKET = "memory://bucket"


@pytest.fixture
def memory() -> Iterator[Any]:
    """fsspec's memory file system, with three scans in it."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    for name, number in (("scans/a.png", 1), ("scans/deep/b.png", 2), ("scans/.hidden/c.png", 3), ("scans/n.txt", 4)):
        with system.open(f"/bucket/{name}", "wb") as file:
            page_of(number).save(file, "PNG")
    yield system
    system.store.clear()


def content(system: Any) -> set[str]:
    return {path.removeprefix("/bucket/out/") for path in system.find("/bucket/out")}


def lines(system: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in system.cat_file("/bucket/out/ocr-run.jsonl").decode().splitlines()]


def test_a_folder_in_a_bucket_is_read_into_another_and_nothing_is_left_beside(ocr: Program, memory: Any) -> None:
    assert ocr("read", f"{BUCKET}/scans", "-o", f"{BUCKET}/out", "--format", "md,txt") == 0
    assert content(memory) == {"a.md", "a.txt", "deep/b.md", "deep/b.txt", "ocr-run.jsonl"}
    assert memory.cat_file("/bucket/out/deep/b.txt") == b"page 2\n"
    assert lines(memory)[0]["type"] == "run"
    assert sum(line["type"] == "page" for line in lines(memory)) == 2


def test_patterns_and_single_objects_are_found_and_one_result_may_be_named(ocr: Program, memory: Any) -> None:
    assert ocr("read", f"{BUCKET}/scans/**/b*.png", "-o", f"{BUCKET}/out") == 0
    assert "deep/b.md" in content(memory)
    assert ocr("read", f"{BUCKET}/scans/n.txt", "-o", f"{BUCKET}/one/page.txt") == 0  # its content decides
    assert memory.cat_file("/bucket/one/page.txt") == b"page 4\n"


def test_what_fails_is_recorded_and_read_again_with_retry_failed(ocr: Program, memory: Any) -> None:
    ocr.script = failing(2)
    assert ocr("read", f"{BUCKET}/scans", "-o", f"{BUCKET}/out") == 1
    assert any(name.startswith(".ocr-parts/") for name in content(memory))
    ocr.script = lambda number, page: f"page {number}"
    assert ocr("read", f"{BUCKET}/scans", "-o", f"{BUCKET}/out", "--retry-failed") == 0
    assert ocr.seen == [2]
    assert content(memory) == {"a.md", "deep/b.md", "ocr-run.jsonl"}


def test_a_run_that_was_killed_is_gone_on_from(ocr: Program, memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(number: int, page: Any) -> str:
        if number == 2:
            ocr.readers[-1].stop.set()
        return f"page {number}"

    ocr.script = stop
    with monkeypatch.context() as patch:
        patch.setattr(buckets.Bucket, "leave", lambda self: self._left.set())  # as after kill -9: nothing is tidied up
        assert ocr("read", f"{BUCKET}/scans", "-o", f"{BUCKET}/out", "--jobs", "1") == 130
    assert ".ocr-parts/lock" in content(memory)
    monkeypatch.setattr(buckets, "SILENCE", 1.0)
    ocr.script = lambda number, page: f"again {number}"
    assert ocr("read", f"{BUCKET}/scans", "-o", f"{BUCKET}/out", "--resume") == 0
    assert memory.cat_file("/bucket/out/a.md") == b"page 1\n"
    assert content(memory) == {"a.md", "deep/b.md", "ocr-run.jsonl"}
    assert sum(line["type"] == "run" for line in lines(memory)) == 2


def test_a_second_run_is_kept_out_while_one_writes(ocr: Program, memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "HEARTBEAT", 0.2)
    first = buckets.Bucket(f"{BUCKET}/out", "ocr-run.jsonl", ".ocr-parts")
    first.take()
    try:
        assert ocr("read", f"{BUCKET}/scans", "-o", f"{BUCKET}/out") == 2
        assert "another run is writing to memory://bucket/out" in ocr.err
    finally:
        first.leave()


def test_results_of_others_are_not_replaced(ocr: Program, memory: Any) -> None:
    memory.pipe_file("/bucket/out/a.md", b"mine")
    assert ocr("read", f"{BUCKET}/scans", "-o", f"{BUCKET}/out") == 2
    assert f"{BUCKET}/out/a.md exists" in ocr.err


@pytest.mark.parametrize(("url", "package"), [("s3://b/x", "s3fs"), ("gs://b/x", "gcsfs"), ("az://b/x", "adlfs")])
def test_a_missing_package_is_named(ocr: Program, monkeypatch: pytest.MonkeyPatch, url: str, package: str) -> None:
    def missing(url: str) -> Any:
        raise ImportError(f"Please install {package}")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    assert ocr("read", url, "-o", "out") == 2
    assert f"pip install {package}" in ocr.err


def test_a_kind_that_only_its_package_knows_is_answered_with_the_package(ocr: Program) -> None:
    if importlib.util.find_spec("adlfs") is not None:
        pytest.skip("adlfs is installed")
    assert ocr("read", "abfss://b/x", "-o", "out") == 2
    assert "pip install adlfs" in ocr.err


def test_an_address_of_no_kind_is_refused(ocr: Program) -> None:
    assert ocr("read", "nonsense://b/x", "-o", "out") == 2
    assert "nonsense" in ocr.err


def test_an_address_on_the_web_is_read_from_this_machine_too(ocr: Program, tmp_path: Path) -> None:
    page_of(7).save(tmp_path / "seven.png")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f"http://127.0.0.1:{server.server_port}"
        assert ocr("read", f"{address}/seven.png", "-o", "out", "--format", "txt") == 0
        assert (tmp_path / "out/seven.txt").read_text() == "page 7\n"
        assert ocr("read", f"{address}/none.png", "-o", "out2") == 1
        assert "404; check the address" in ocr.err
    finally:
        server.shutdown()


def test_a_file_address_is_a_path(ocr: Program, tmp_path: Path) -> None:
    page_of(5).save(tmp_path / "five.png")
    assert ocr("read", (tmp_path / "five.png").as_uri(), "-o", (tmp_path / "out").as_uri()) == 0
    assert (tmp_path / "out/five.md").read_text() == "page 5\n"


@pytest.mark.parametrize(
    ("address", "what", "check"),
    [
        ("az://scans/x", "container 'scans'", "AZURE_STORAGE_ACCOUNT_NAME"),
        ("abfs://scans/x", "container 'scans'", "AZURE_STORAGE_ACCOUNT_NAME"),
        ("gs://scans/*.png", "bucket 'scans'", "GOOGLE_APPLICATION_CREDENTIALS"),
        ("s3://scans", "bucket 'scans'", "AWS_ENDPOINT_URL"),
    ],
)
def test_a_bucket_that_lists_like_an_empty_folder_but_is_not_there_is_named_with_what_to_check(
    monkeypatch: pytest.MonkeyPatch, address: str, what: str, check: str
) -> None:
    class Empty:
        refusal: Exception = FileNotFoundError("No such thing")

        def find(self, path: str, detail: bool) -> Any:
            return {}

        glob = find

        def info(self, path: str) -> Any:
            assert path == "scans"
            raise self.refusal

    monkeypatch.setattr(fsspec.core, "url_to_fs", lambda url: (Empty(), url.partition("://")[2]))
    with pytest.raises(UsageError, match=f"{re.escape(address)}: there is no {what}.*No such thing.*{check}"):
        list(buckets.find(address, None))
    Empty.refusal = PermissionError("403")
    with pytest.raises(UsageError, match=f"{re.escape(address)}: no document here.*'scans'.*403.*{check}"):
        list(buckets.find(address, None))


def test_a_store_that_cannot_be_begun_with_is_told_with_what_to_check(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_account(url: str) -> Any:
        raise ValueError("Must provide account_name")

    monkeypatch.setattr(fsspec.core, "url_to_fs", no_account)
    with pytest.raises(UsageError, match=r"az://scans/x cannot be asked: .*account_name; .*AZURE_STORAGE_ACCOUNT_NAME"):
        list(buckets.find("az://scans/x", None))


def test_an_address_that_cannot_be_listed_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing:
        def find(self, path: str, detail: bool) -> Any:
            raise PermissionError("Access Denied")

    monkeypatch.setattr(fsspec.core, "url_to_fs", lambda url: (Refusing(), "b/x"))
    with pytest.raises(UsageError, match="s3://b/x cannot be listed: PermissionError: Access Denied"):
        list(buckets.find("s3://b/x", None))
