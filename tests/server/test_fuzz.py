"""Requests made up from /openapi.json, and near-valid ones: nothing breaks the server."""

from __future__ import annotations

import base64
import socket
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from models.precedence import SETTINGS
from server.fetch import Fetcher
from tests.pdfs import text_pdf
from tests.server.conftest import MakeService, Service, chat, data_url
from tests.server.test_mistral import ONE, upload
from tests.server.test_ocr_jobs import submit

# Together the examples of this module make more than 2,000 requests.
SCHEMA_EXAMPLES = 250  # for each of the generation endpoints, valid and invalid bodies
OWN_EXAMPLES = 1500

NO_SHRINKING = settings(
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def no_network(host: str, port: int) -> list[tuple[Any, ...]]:
    raise socket.gaierror("no network in this test")


@pytest.fixture
def service(make_service: MakeService, monkeypatch: pytest.MonkeyPatch) -> Service:
    # Collecting the garbage of a whole test session at every switch would take most of the time.
    monkeypatch.setattr("server.http.pool.give_memory_back", lambda: None)
    monkeypatch.setattr("server.http.in_flight.give_memory_back", lambda: None)
    return make_service(fetcher=Fetcher(resolver=no_network))


def check(result: Any) -> None:
    """No 5xx but documented 503s, and every error in OpenAI's shape."""
    assert result.status_code < 500 or result.status_code == 503, result.text
    if result.status_code >= 400:
        assert set(result.json["error"]) == {"message", "type", "param", "code"}


def still_healthy(service: Service) -> None:
    assert service.client.simulate_get("/health").status_code == 200
    assert service.application.in_flight.present == 0
    assert service.post(chat()).json["choices"][0]["message"]["content"] == "Hello, world."


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode), ids=lambda mode: mode.value)
def test_bodies_made_from_the_schema_never_break_the_server(service: Service, mode: Any) -> None:
    schema = schemathesis.openapi.from_wsgi("/openapi.json", service.application.wsgi)
    made = 0
    for path in ("/v1/chat/completions", "/v1/responses", "/v1/ocr", "/layout-parsing"):
        strategy = schema[path]["POST"].as_strategy(generation_mode=mode)

        @settings(NO_SHRINKING, max_examples=SCHEMA_EXAMPLES)
        @given(case=strategy)
        def run(case: Any) -> None:
            nonlocal made
            made += 1
            if made % 2 and isinstance(case.body, dict):
                case.body["model"] = "tiny-ocr"  # a made-up id would end every request at its 404
            response = case.call()
            assert response.status_code < 500 or response.status_code == 503, response.text

        run()
    assert made >= SCHEMA_EXAMPLES  # a small space of bodies may be used up before the number of examples is
    still_healthy(service)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
NUMBERS = (
    st.sampled_from([-1, 0, 1, 2, 0.5, 1.0, 512, 2**31, 2**63, 2**64, 10**30, -0.0, 1e-320, 1e308]) | st.integers()
)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "integer": NUMBERS,
    "number": NUMBERS | st.floats(allow_nan=False, allow_infinity=False),
    "boolean": st.booleans(),
    "strings": st.text(max_size=3) | st.lists(st.text(max_size=3), max_size=3),
    "integers": st.lists(st.integers(), max_size=3),
    "word": st.sampled_from(["white", "black", "drop"]) | st.text(max_size=5),
}
PDF = "data:application/pdf;base64," + base64.b64encode(text_pdf(["one", "two"], size=(60, 40))).decode()
URLS = st.sampled_from(
    [
        data_url(), data_url(form="JPEG"), "data:image/png;base64,AAAA", "data:,x", "http://127.0.0.1/", "https://a.example/",
        "http://[::1", "file:///etc/passwd", "", "x", "data:image/png;base64," + "A" * 1001, "http://\udcff",
    ]
) | st.text(max_size=20)  # fmt: skip
FILES = (
    st.sampled_from([PDF, PDF[:-1000], data_url(), "data:application/pdf;base64,JVBERi0xLjc", "data:;base64,", "x.pdf"])
    | URLS
    | JSON
)
PARTS = st.one_of(
    st.builds(lambda kind, text: {"type": kind, "text": text}, st.sampled_from(["text", "input_text"]),
              st.text(max_size=10) | st.sampled_from(["<image>", "Free OCR.", "<image><image>"])),
    st.builds(lambda kind, url: {"type": kind, "image_url": url}, st.sampled_from(["image_url", "input_image"]),
              URLS | URLS.map(lambda url: {"url": url}) | JSON),
    st.builds(lambda data: {"type": "file", "file": {"file_data": data}}, FILES),
    st.builds(lambda data: {"type": "input_file", "file_data": data}, FILES),
    JSON,
)  # fmt: skip
MESSAGES = st.lists(
    st.builds(
        lambda role, content: {"role": role, "content": content},
        st.sampled_from(["user", "user", "system", "assistant", "tool", "developer"]) | st.text(max_size=3),
        st.lists(PARTS, max_size=4) | st.text(max_size=10) | JSON,
    )
    | JSON,
    max_size=4,
)
GOOD_MESSAGES = st.just(chat()["messages"]) | st.builds(
    lambda text, images, system: [
        *([{"role": "system", "content": system}] if system else []),
        {"role": "user", "content": [*({"type": "image_url", "image_url": url} for url in images), text]},
    ],
    st.builds(lambda text: {"type": "text", "text": text}, st.text(max_size=10)),
    st.lists(st.sampled_from([data_url(), data_url(form="GIF")]), max_size=3),
    st.text(max_size=5),
)
GOOD_VALUES: dict[str, st.SearchStrategy[Any]] = {
    "integer": st.integers(64, 2048),
    "number": st.floats(0.01, 1),
    "boolean": st.booleans(),
    "strings": st.lists(st.text(min_size=1, max_size=3), max_size=3),
    "integers": st.lists(st.integers(0, 1000), max_size=3),
    "word": st.sampled_from(["white", "black", "drop"]),
}


DOCUMENTS = st.builds(
    lambda data, text: [{"role": "user", "content": [{"type": "input_file", "file_data": data}, *text]}],
    st.sampled_from([PDF, data_url()]),
    st.sampled_from([[], [{"type": "text", "text": "Free OCR."}]]),
)
TASKS = st.sampled_from(["markdown", "ocr", "locate", "table"])


def mostly(good: st.SearchStrategy[Any], odd: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """The good one in four of five draws."""
    return st.integers(0, 4).flatmap(lambda number: odd if number == 0 else good)


SPELLINGS = [(spelling, setting) for setting in SETTINGS for spelling in setting.spellings]
# Few settings at a time, or hardly a request would get past them.
SETTING_VALUES = st.lists(st.sampled_from(SPELLINGS), max_size=3).flatmap(
    lambda chosen: st.fixed_dictionaries(
        {name: mostly(GOOD_VALUES[setting.kind], VALUES[setting.kind] | JSON) for name, setting in chosen}
    )
)
MODELS = mostly(
    st.sampled_from(["deepseek-ocr", "tiny-ocr", "deepseek-ocr-q8"]),
    st.sampled_from(["hunyuan-ocr", "../x", ""]) | JSON,
)
OCR = st.fixed_dictionaries(
    {},
    optional={
        "raw": mostly(st.booleans(), JSON),
        "boxes": mostly(st.booleans(), JSON),
        "pages": mostly(st.none(), st.sampled_from(["1", "2-", "1-9", "0", "-1", "1,,2", "9" * 999]) | JSON),
        "task": mostly(st.none(), TASKS | JSON),
    },
)
BODIES = st.builds(
    lambda base, values, more, drop: {key: value for key, value in {**base, **values, **more}.items() if key != drop},
    st.fixed_dictionaries(
        {
            "model": MODELS,
            "messages": mostly(GOOD_MESSAGES | DOCUMENTS, MESSAGES),
            "input": mostly(GOOD_MESSAGES | DOCUMENTS, MESSAGES | st.text(max_size=5)),
        }
    ),
    SETTING_VALUES,
    st.fixed_dictionaries(
        {},
        optional={
            "stream": st.booleans(),
            "n": mostly(st.just(1), JSON),
            "task": mostly(st.none(), TASKS | JSON),
            "ocr": mostly(OCR, JSON),
        },
    ),
    mostly(st.none(), st.sampled_from(["model", "messages", "input"])),
)


def test_near_valid_bodies_never_break_the_server(service: Service) -> None:
    statuses: list[int] = []

    @settings(NO_SHRINKING, max_examples=OWN_EXAMPLES)
    @given(body=BODIES, path=st.sampled_from(["/v1/chat/completions", "/v1/responses"]))
    def run(body: dict[str, Any], path: str) -> None:
        try:
            result = service.post(body, path)
        except UnicodeEncodeError:
            return  # a lone surrogate, which the test client cannot send
        check(result)
        statuses.append(result.status_code)

    run()
    assert {400, 404} <= set(statuses)
    assert statuses.count(200) > OWN_EXAMPLES // 5  # deep enough to mean something
    still_healthy(service)


def test_the_document_is_openapi_3_1_and_names_every_setting(service: Service) -> None:
    document = service.client.simulate_get("/openapi.json").json
    schemathesis.openapi.from_dict(document).validate()
    assert document["openapi"].startswith("3.1")
    fields = document["components"]["schemas"]["ChatRequest"]["properties"]
    assert {spelling for setting in SETTINGS for spelling in setting.spellings} <= set(fields)
    ids = {"model_id": "tiny-ocr", "file_id": upload(service, ONE).json["id"], "job_id": submit(service).json["id"]}
    for path, operations in document["paths"].items():
        for method in operations:
            if method in ("get", "post"):
                known = service.client.simulate_request(method.upper(), path.format(**ids))
                assert known.status_code not in (404, 405), path
