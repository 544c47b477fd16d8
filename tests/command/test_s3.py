"""Documents and results in S3, by s3fs against moto's server here: the bytes of a local run, and its errors."""

from __future__ import annotations

import http.server
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from tests.command.conftest import ROOT, Program, command, environment, page_of, run
from tests.pdfs import scanned_pdf
from tools.demo_page import demo_page

NOT_HERE = "pip install s3fs boto3 'moto[s3]' Flask flask-cors"
TINY = ("--model", "tiny-ocr", "--threads", "1", "--max-new-tokens", "30")


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """Address of a server that speaks S3 and keeps everything in memory."""
    pytest.importorskip("s3fs", reason=NOT_HERE)
    server = pytest.importorskip("moto.server", reason=NOT_HERE).ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Sets the endpoint of this process and of those that it starts."""
    import s3fs

    def to(url: str) -> None:
        s3fs.S3FileSystem.clear_instance_cache()
        for name, value in {
            "AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y",
            "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true", "AWS_MAX_ATTEMPTS": "1",
        }.items():  # fmt: skip
            monkeypatch.setenv(name, value)

    yield to
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def store(endpoint: str, use: Any) -> Iterator[Any]:
    """boto3's client, which is not what the program uses; the buckets ``scans`` and ``out`` are new."""
    use(endpoint)
    import boto3

    client = boto3.client("s3", endpoint_url=endpoint)
    for bucket in ("scans", "out"):
        client.create_bucket(Bucket=bucket)
    yield client
    for bucket in ("scans", "out"):
        for name in names(client, bucket):
            client.delete_object(Bucket=bucket, Key=name)
        client.delete_bucket(Bucket=bucket)


def names(client: Any, bucket: str, prefix: str = "") -> list[str]:
    return [entry["Key"] for entry in client.list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", [])]


def content(client: Any, name: str) -> bytes:
    return cast(bytes, client.get_object(Bucket="out", Key=name)["Body"].read())


def upload(client: Any, folder: Path) -> None:
    for path in folder.iterdir():
        client.upload_file(str(path), "scans", path.name)


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """A picture and a document of two pages."""
    folder, page = tmp_path / "in", demo_page()
    folder.mkdir()
    page.save(folder / "one.png")
    (folder / "two.pdf").write_bytes(scanned_pdf([page, page.crop((0, 0, page.width, page.height // 2))]))
    return folder


def test_a_bucket_gives_the_bytes_of_a_local_run_and_a_killed_run_goes_on(
    tiny_home: Path, tmp_path: Path, store: Any, scans: Path
) -> None:
    upload(store, scans)
    assert run(tiny_home, "read", scans, "-o", tmp_path / "local", *TINY).returncode == 0
    local = {path.name: path.read_bytes() for path in (tmp_path / "local").glob("*.md")}
    assert len(local) == 2
    call = ("read", "s3://scans", "-o", "s3://out/run", *TINY, "--jobs", "1")
    killed = subprocess.Popen(command(*call), cwd=ROOT, env=environment(tiny_home), stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 120
        while not any(name.endswith(".md") for name in names(store, "out")):
            assert killed.poll() is None
            assert time.monotonic() < until, names(store, "out")
            time.sleep(0.02)
    finally:
        killed.kill()
        killed.wait()
    assert "run/.ocr-parts/lock" in names(store, "out")
    before = {name: content(store, name) for name in names(store, "out") if name.endswith(".md")}
    resumed = run(tiny_home, *call, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert "3 pages to read" not in resumed.stderr
    assert sorted(names(store, "out")) == ["run/ocr-run.jsonl", "run/one.md", "run/two.md"]
    written = {name: content(store, f"run/{name}") for name in local}
    assert written == local
    assert all(content(store, name) == earlier for name, earlier in before.items())


def test_folders_and_patterns_of_a_bucket_are_read(ocr: Program, store: Any, tmp_path: Path) -> None:
    for name, number in (("a.png", 1), ("deep/b.png", 2), ("deep/c.png", 3)):
        page_of(number).save(tmp_path / "page.png")
        store.upload_file(str(tmp_path / "page.png"), "scans", f"box/{name}")
    assert ocr("read", "s3://scans/box", "-o", "s3://out/all", "--format", "md,txt") == 0
    assert {name for name in names(store, "out", "all/") if name.endswith(".txt")} == {
        "all/a.txt", "all/deep/b.txt", "all/deep/c.txt",
    }  # fmt: skip
    assert content(store, "all/deep/c.txt") == b"page 3\n"
    assert ocr("read", "s3://scans/box/**/c*.png", "-o", "out", "--format", "txt") == 0
    assert [path.read_text() for path in (ocr.folder / "out").rglob("*.txt")] == ["page 3\n"]


@pytest.mark.parametrize("address", ["s3://missing", "s3://missing/folder", "s3://missing/**/*.png"])
def test_an_input_bucket_that_is_missing_is_named_with_what_to_check(ocr: Program, store: Any, address: str) -> None:
    assert ocr("read", address, "-o", "out") == 2
    assert f"error: {address}" in ocr.err
    assert "The specified bucket does not exist" in ocr.err or "there is no bucket 'missing'" in ocr.err
    assert "AWS_ENDPOINT_URL" in ocr.err
    assert "no document here" not in ocr.err


def test_an_empty_folder_of_a_bucket_that_is_there_has_no_documents(ocr: Program, store: Any) -> None:
    assert ocr("read", "s3://scans/empty", "-o", "out") == 2
    assert "s3://scans/empty: no document here" in ocr.err


def test_an_output_bucket_that_is_missing_is_named_with_what_to_check(ocr: Program, store: Any, scans: Path) -> None:
    assert ocr("read", scans, "-o", "s3://missing/x") == 2
    assert "s3://missing/x cannot be written: The specified bucket does not exist" in ocr.err
    assert "AWS_ENDPOINT_URL" in ocr.err


@pytest.fixture
def answering() -> Iterator[Any]:
    """Starts servers that give one answer to everything, and says their addresses."""
    servers = []

    def start(status: int, body: bytes, kind: str) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body if self.command != "HEAD" else b"")

            do_HEAD = do_PUT = do_GET

            def log_message(self, *_: Any) -> None: ...

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


DENIED = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
PAGE = b"<html><body>Welcome</body></html>"


@pytest.mark.parametrize("address", ["s3://scans", "s3://scans/folder", "s3://scans/*.png"])
@pytest.mark.parametrize(
    ("status", "body", "kind", "reason"),
    [
        (403, DENIED, "application/xml", "Access Denied"),
        (404, PAGE, "text/html", "ListObjectsV2"),  # a web server, which is no store
    ],
)
def test_a_store_that_refuses_or_is_none_is_told_with_its_reason(
    ocr: Program,
    endpoint: str,
    use: Any,
    answering: Any,
    address: str,
    status: int,
    body: bytes,
    kind: str,
    reason: str,
) -> None:
    use(answering(status, body, kind))
    assert ocr("read", address, "-o", "out") == 2
    assert address in ocr.err
    assert reason.lower() in ocr.err.lower()
    assert "check its name" in ocr.err


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "http://nowhere.invalid"])
@pytest.mark.parametrize("address", ["s3://scans/folder", "s3://scans/*.png"])
def test_an_endpoint_that_is_not_there_is_told(
    ocr: Program, endpoint: str, use: Any, address: str, url: str, scans: Path
) -> None:
    use(url)
    assert ocr("read", address, "-o", "out") == 2
    assert address in ocr.err
    assert url in ocr.err
    assert "AWS_ENDPOINT_URL" in ocr.err
    assert ocr("read", scans, "-o", "s3://out/x") == 2
    assert url in ocr.err
    assert "AWS_ENDPOINT_URL" in ocr.err
