"""The API on Ray Serve with the built-in model: the same answers, clients that hang up, replicas that come and go."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.command.conftest import ROOT, environment, tiny_home
from tests.waiting import until
from tools.demo import free_port
from tools.demo_page import demo_page

__all__ = ["tiny_home"]  # a fixture
pytestmark = [pytest.mark.ray, pytest.mark.cluster]
KEY = {"Authorization": "Bearer key"}


def request(**more: Any) -> dict[str, Any]:
    buffer = io.BytesIO()
    demo_page().save(buffer, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}]
    return {"model": "tiny-ocr", "max_tokens": 200, "messages": [{"role": "user", "content": content}], **more}


class Served:
    """``ocr-onnx serve --ray`` in a process of its own, on a cluster of its own."""

    def __init__(self, home: Path, port: int, *flags: str) -> None:
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "server.command", "serve", "--ray", "local", "--model", "tiny-ocr",
                   "--threads", "1", "--host", "127.0.0.1", "--port", str(port), "--api-key", "key",
                   *flags]  # fmt: skip
        env = environment(home, RAY_OVERRIDE_RESOURCES='{"CPU": 8}')
        self.process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
        self.until(lambda: self.get("/ready").status_code == 200, 150)

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", headers=KEY, timeout=20)

    def ask(self, **more: Any) -> httpx.Response:
        return httpx.post(f"{self.url}/v1/chat/completions", json=request(**more), headers=KEY, timeout=240)

    def metric(self, name: str) -> dict[str, float]:
        """Series of a metric -> value."""
        lines = self.get("/metrics").text.splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line.startswith(name)}

    def replicas(self) -> int:
        return len(self.metric("ocr_loaded_models"))

    def places_of_replicas(self) -> list[set[int]]:
        """The CPUs that threads of each replica may run on."""
        return [
            {cpu for thread in process.threads() for cpu in os.sched_getaffinity(thread.id)}
            for process in psutil.Process(self.process.pid).children(recursive=True)
            if "Engine tiny-ocr" in " ".join(process.cmdline())
        ]

    def until(self, true: Callable[[], bool], seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            assert self.process.poll() is None, "the program has ended"
            try:
                if true():
                    return
            except httpx.HTTPError:
                pass
            time.sleep(1)
        raise AssertionError(f"not true within {seconds} s")

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(90)


@pytest.fixture
def serve(tiny_home: Path) -> Iterator[Callable[..., Served]]:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'ocr-onnx[ray]'")
    running: list[Served] = []

    def start(*flags: str) -> Served:
        running.append(Served(tiny_home, free_port(), *flags))
        return running[-1]

    yield start
    for served in running:
        if served.process.poll() is None:
            served.stop()


def test_100_clients_of_which_20_hang_up_get_what_they_asked_for(serve: Callable[..., Served]) -> None:
    served = serve("--replicas", "2", "--max-queue", "200")
    expected = served.ask().json()["choices"][0]["message"]["content"]
    assert "Invoice" in expected
    # Each replica of one thread stays on one CPU with all that it does, and no two on the same.
    places = served.places_of_replicas()
    assert len(places) == 2
    assert [len(cpus) for cpus in places] == [1, 1]
    assert places[0] != places[1]

    def client(number: int) -> str:
        if number % 5:
            answer = served.ask(stream=bool(number % 2))
            assert answer.status_code == 200
            if not number % 2:
                return str(answer.json()["choices"][0]["message"]["content"])
            events = [line[6:] for line in answer.text.splitlines() if line.startswith("data: {")]
            deltas = [choice["delta"] for event in events for choice in json.loads(event)["choices"]]
            return "".join(delta.get("content") or "" for delta in deltas)
        with httpx.stream(
            "POST", f"{served.url}/v1/chat/completions", json=request(stream=True), headers=KEY, timeout=240
        ) as answer:
            next(answer.iter_lines())
        return "gone"

    with ThreadPoolExecutor(100) as clients:
        texts = list(clients.map(client, range(100)))
    assert texts.count("gone") == 20
    assert {text for text in texts if text != "gone"} == {expected}

    def counted(outcome: str) -> float:
        series = served.metric("ocr_requests_total")
        return sum(value for name, value in series.items() if f'outcome="{outcome}"' in name)

    # Who hung up when the answer was nearly through may count as served; nobody is left in the house.
    served.until(lambda: counted("ok") + counted("client_gone") == 101 and counted("client_gone") > 0, 60)
    served.until(lambda: sum(served.metric("ocr_requests_present").values()) == 0, 60)
    assert served.stop() == 0


def test_replicas_follow_the_load_from_one_to_three_and_back(serve: Callable[..., Served]) -> None:
    served = serve(
        "--replicas", "1-3", "--slots", "1", "--upscale-seconds", "2", "--downscale-seconds", "5", "--max-queue", "200"
    )
    served.until(lambda: served.replicas() == 1, 60)
    calm = threading.Event()

    def client(_: int) -> list[int]:
        codes = []
        while not calm.is_set():
            codes.append(served.ask().status_code)
        return codes

    with ThreadPoolExecutor(12) as clients:
        asked = [clients.submit(client, number) for number in range(12)]
        try:
            served.until(lambda: served.replicas() == 3, 150)
        finally:
            calm.set()
        assert {code for one in asked for code in one.result()} == {200}
    served.until(lambda: served.replicas() == 1, 180)


@pytest.fixture
def deployed(tiny_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Deploys the importable application, again and again; returns its address."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'ocr-onnx[ray]'")
    for name, value in environment(tiny_home).items():
        monkeypatch.setenv(name, value)
    ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False)
    from ray import serve

    from server.ray.service import app

    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})

    def deploy(slots: str) -> str:
        arguments = {"model": "tiny_ocr".replace("_", "-"), "threads": "1", "replicas": "2", "slots": slots}
        serve.run(app(arguments), name="ocr-onnx", route_prefix="/")
        return f"http://127.0.0.1:{port}"

    yield deploy
    serve.shutdown()
    ray.shutdown()


def test_no_request_is_lost_while_a_new_version_takes_over(deployed: Callable[[str], str]) -> None:
    url = deployed("2")
    done = threading.Event()
    codes: list[int] = []

    def client(_: int) -> None:
        while not done.is_set():
            codes.append(httpx.post(f"{url}/v1/chat/completions", json=request(), timeout=240).status_code)

    with ThreadPoolExecutor(4) as clients:
        asked = [clients.submit(client, number) for number in range(4)]
        try:
            until(lambda: len(codes) > 8)
            deployed("3")
            before = len(codes)
            until(lambda: len(codes) > before + 8)
        finally:
            done.set()
        for one in asked:
            one.result()
    assert set(codes) == {200}
