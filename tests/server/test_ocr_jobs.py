"""/v1/ocr/jobs: submitted, followed, cancelled, kept over a restart, within limits."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import httpx
import pytest

from runtime.requests import Request
from server.http.mistral import jobs
from server.http.mistral.job_files import JobFiles
from tests.server.conftest import MakeService, Service, StartServer
from tests.server.document_requests import file_url, number_of, numbered
from tests.server.fake import Step
from tests.server.test_mistral import THREE, error
from tests.waiting import until


@pytest.fixture(autouse=True)
def try_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "RETRY_SECONDS", 0.05)


def page_text(request: Request) -> Iterable[Step]:
    return [f"Page {number_of(request)}"]


def submit(service: Service, key: str = "", **more: Any) -> Any:
    body = {"document": {"document_url": file_url(THREE)}, **more}
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return service.client.simulate_post("/v1/ocr/jobs", json=body, headers=headers)


def status(service: Service, job_id: str, key: str = "") -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    found: dict[str, Any] = service.client.simulate_get(f"/v1/ocr/jobs/{job_id}", headers=headers).json
    return found


def ended(service: Service, job_id: str) -> dict[str, Any]:
    until(lambda: status(service, job_id)["finished_at"] is not None)
    return status(service, job_id)


def test_a_job_is_answered_at_once_and_gives_what_the_plain_request_gives(make_service: MakeService) -> None:
    go = threading.Event()

    def script(request: Request) -> Iterable[Step]:
        if number_of(request) == 3:
            go.wait(30)
        return [f"Page {number_of(request)}"]

    service = make_service(script=script, slots=1)
    made = submit(service, pages=[0, 2])
    assert made.status_code == 202
    assert made.headers["location"] == f"/v1/ocr/jobs/{made.json['id']}"
    assert made.json["status"] in ("queued", "running")
    until(lambda: status(service, made.json["id"])["pages_done"] == 1)
    running = status(service, made.json["id"])
    assert (running["status"], running["pages_total"], running["result"]) == ("running", 2, None)
    go.set()
    done = ended(service, made.json["id"])
    assert (done["status"], done["pages_done"], done["pages_total"], done["error"]) == ("succeeded", 2, 2, None)
    assert [page["markdown"] for page in done["result"]["pages"]] == ["Page 1", "Page 3"]
    plain = service.client.simulate_post(
        "/v1/ocr", json={"document": {"document_url": file_url(THREE)}, "pages": [0, 2]}
    ).json
    assert {**done["result"], "ocr": None} == {**plain, "ocr": None}
    (listed,) = service.client.simulate_get("/v1/ocr/jobs").json["data"]
    assert listed["id"] == made.json["id"]
    assert "result" not in listed
    assert service.application.in_flight.present == 0


def test_a_job_can_be_cancelled_while_it_runs_and_while_it_waits(make_service: MakeService) -> None:
    def endless(request: Request) -> Iterable[Step]:
        while True:
            yield "x"
            yield 0.01

    service = make_service(script=endless, slots=1)
    ids = [submit(service, max_tokens=1000000).json["id"] for _ in range(jobs.WORKERS + 1)]
    until(lambda: [status(service, one)["status"] for one in ids] == ["running"] * jobs.WORKERS + ["queued"])
    for one in ids:
        assert service.client.simulate_post(f"/v1/ocr/jobs/{one}/cancel").status_code == 200
    for one in ids:
        assert ended(service, one)["status"] == "cancelled"
    until(lambda: service.application.in_flight.present == 0)
    until(lambda: all(model.active == 0 for model in service.source.models.values()))


def test_a_deleted_job_ends_and_is_forgotten(make_service: MakeService) -> None:
    service = make_service(script=lambda request: [30.0, "x"], slots=1)
    made = submit(service).json
    until(lambda: status(service, made["id"])["status"] == "running")
    assert service.client.simulate_delete(f"/v1/ocr/jobs/{made['id']}").json["deleted"] is True
    assert service.client.simulate_get(f"/v1/ocr/jobs/{made['id']}").status_code == 404
    until(lambda: service.application.in_flight.present == 0)
    assert service.client.simulate_get("/v1/ocr/jobs").json["data"] == []


def test_a_job_that_fails_says_why_in_the_clients_words(make_service: MakeService) -> None:
    service = make_service(script=page_text)
    failed = ended(service, submit(service, pages=[7]).json["id"])
    assert (failed["status"], failed["result"], failed["error"]["param"]) == ("failed", None, "pages")
    assert "page 7 (counted from 0) is beyond the end" in failed["error"]["message"]
    broken = make_service(script=lambda request: [1 / 0])  # type: ignore[list-item]
    assert ended(broken, submit(broken).json["id"])["error"]["code"] == "engine_error"


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({"document": {}}, 400),
        ({"pages": "x"}, 400),
        ({"document": {"file_id": "file-1"}}, 404),
        ({"table_format": "x"}, 400),
    ],
)
def test_what_can_be_seen_at_once_is_refused_at_once(make_service: MakeService, more: Any, code: int) -> None:
    service = make_service()
    assert submit(service, **more).status_code == code
    assert service.client.simulate_get("/v1/ocr/jobs").json["data"] == []


def test_a_job_waits_for_a_place_in_the_house(make_service: MakeService) -> None:
    go = threading.Event()

    def script(request: Request) -> Iterable[Step]:
        go.wait(30)
        return ["done"]

    service = make_service(script=script, slots=1, max_queue=1, max_jobs=3)
    ids = [submit(service).json["id"] for _ in range(3)]
    full = submit(service)
    assert (full.status_code, error(full)["code"]) == (503, "jobs_full")
    assert int(full.headers["retry-after"]) >= 1
    go.set()
    assert [ended(service, one)["status"] for one in ids] == ["succeeded"] * 3


def test_jobs_belong_to_the_key_that_brought_them(make_service: MakeService) -> None:
    service = make_service(script=page_text, api_keys=("one", "two"))
    made = submit(service, "one").json
    until(lambda: status(service, made["id"], "one")["status"] == "succeeded")
    assert status(service, made["id"], "two")["error"]["code"] == "job_not_found"
    other = {"Authorization": "Bearer two"}
    assert service.client.simulate_get("/v1/ocr/jobs", headers=other).json["data"] == []
    assert service.client.simulate_delete(f"/v1/ocr/jobs/{made['id']}", headers=other).status_code == 404
    assert "owner" not in status(service, made["id"], "one")


def test_finished_jobs_survive_a_restart_and_unfinished_ones_end_with_the_server(
    start_fake: StartServer, tmp_path: Path
) -> None:
    cache = {"OCR_ONNX_CACHE": str(tmp_path / "cache" / "deepseek-ocr")}
    server = start_fake("--shutdown-timeout", "0.2", **cache)
    body = {"document": {"document_url": file_url(THREE)}, "task": "free"}
    made = httpx.post(f"{server.url}/v1/ocr/jobs", json=body).json()
    until(lambda: httpx.get(f"{server.url}/v1/ocr/jobs/{made['id']}").json()["status"] == "succeeded")
    before = httpx.get(f"{server.url}/v1/ocr/jobs/{made['id']}").json()
    long = {"document": {"document_url": file_url(numbered(50))}, "task": "locate", "max_tokens": 100000}
    refused = httpx.post(f"{server.url}/v1/ocr/jobs", json=long).json()
    until(lambda: httpx.get(f"{server.url}/v1/ocr/jobs/{refused['id']}").json()["status"] == "failed")
    assert server.stop() == 0

    again = start_fake(**cache)
    assert httpx.get(f"{again.url}/v1/ocr/jobs/{made['id']}").json() == before
    assert before["result"]["pages"][0]["markdown"] == "Grüße, 世界."
    assert len(httpx.get(f"{again.url}/v1/ocr/jobs").json()["data"]) == 2


def test_a_job_that_is_running_at_the_end_of_the_server_is_kept_as_failed(make_service: MakeService) -> None:
    service = make_service(script=lambda request: [30.0, "x"], slots=1)
    made = submit(service).json
    until(lambda: status(service, made["id"])["status"] == "running")
    service.application.in_flight.drain(0.1)
    service.application.close()
    again = make_service()
    kept = status(again, made["id"])
    assert (kept["status"], kept["error"]["code"]) == ("failed", "shutting_down")
    assert submit(service).status_code == 503


@pytest.fixture
def kept(tmp_path: Path) -> JobFiles:
    return JobFiles(tmp_path / "jobs", max_bytes=3000, max_age=1000.0)


def entry(number: int) -> dict[str, Any]:
    return {"id": f"ocrjob-{number:032x}", "owner": "me", "status": "succeeded"}


def test_old_jobs_and_too_many_bytes_are_forgotten(tmp_path: Path, kept: JobFiles) -> None:
    for number in range(4):
        kept.save(entry(number), {"text": "x" * 1000})
        for path in (tmp_path / "jobs").glob(f"{entry(number)['id']}*"):
            os.utime(path, (1000.0 + number, 1000.0 + number))
    late = JobFiles(tmp_path / "jobs", max_bytes=3000, max_age=1000.0, clock=lambda: 2002.5)
    assert {job["id"] for job in late.all()} == {entry(3)["id"]}
    assert late.load(entry(2)["id"]) is None
    assert late.result(entry(2)["id"]) is None
    late.save(entry(9), {"text": "x" * 9000})  # the one that has just ended stays
    assert {job["id"] for job in late.all()} == {entry(9)["id"]}


def test_job_files_are_private_and_their_names_are_no_way_out(tmp_path: Path, kept: JobFiles) -> None:
    kept.save(entry(1), {})
    for path in [tmp_path / "jobs", *(tmp_path / "jobs").iterdir()]:
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077
    (tmp_path / "secret.json").write_text("{}")
    assert kept.load("../secret") is None
    assert kept.result("../secret") is None
    (tmp_path / "jobs" / f"{entry(1)['id']}.json").write_text("{")
    assert kept.load(entry(1)["id"]) is None
