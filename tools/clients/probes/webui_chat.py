"""Open WebUI with its default settings: its server is started here and asked by its API.

A request with a session, as Open WebUI's page in the browser sends it, gets the built-in tools. This chat is not
stored, so the wrapper of a stored chat's files (utils/middleware.py, add_file_context) is written here.
"""

import json
import os
import socket
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

import probe

START_SECONDS = 600  # the first start fills the database

with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
home = f"http://127.0.0.1:{port}"
folder = Path(tempfile.mkdtemp(prefix="open-webui-"))
settings = {
    "DATA_DIR": str(folder),
    "WEBUI_SECRET_KEY": "for this run only",
    "WEBUI_AUTH": "False",
    "OPENAI_API_BASE_URL": probe.API,
    "OPENAI_API_KEY": "none",
    "ENABLE_OLLAMA_API": "False",
    "RAG_EMBEDDING_ENGINE": "openai",  # the default one downloads a model when the program starts
    "HF_HUB_OFFLINE": "1",
}
log = (folder / "log").open("w")
webui = subprocess.Popen(
    ["open-webui", "serve", "--host", "127.0.0.1", "--port", str(port)],
    env={**os.environ, **settings}, stdout=log, stderr=log,
)  # fmt: skip
token = ""
ASKED = {"model": probe.MODEL, "stream": True, "session_id": "probe"}


def call(path: str, body: dict | None = None) -> str:
    request = urllib.request.Request(home + path, None if body is None else json.dumps(body).encode())
    request.add_header("Content-Type", "application/json")
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    with urllib.request.urlopen(request, timeout=300) as answer:
        return answer.read().decode()


def sign_in() -> None:
    global token
    end = time.monotonic() + START_SECONDS
    while True:
        try:
            call("/health")
            break
        except OSError as error:
            if webui.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"it did not start: {(folder / 'log').read_text()[-400:]}") from error
            time.sleep(1)
    token = json.loads(call("/api/v1/auths/signin", {"email": "admin@localhost", "password": "admin"}))["token"]
    call("/api/models")


def ask(*messages: dict) -> str:
    if not token:
        sign_in()
    text = call("/api/chat/completions", {**ASKED, "messages": list(messages)})
    pieces = []
    for line in text.splitlines():
        if line.startswith("data: {"):
            event = json.loads(line[6:])
            if "error" in event:
                raise RuntimeError(str(event["error"]))
            pieces += [choice["delta"].get("content") or "" for choice in event.get("choices", [])]
    return "".join(pieces)


def user(text: str = probe.PROMPT) -> dict:
    picture = {"type": "image_url", "image_url": {"url": probe.data_url(probe.PICTURE)}}
    file = '<attached_files>\n<file type="image" id="1" url="1" name="page.png"/>\n</attached_files>\n\n'
    return {"role": "user", "content": [{"type": "text", "text": file}, {"type": "text", "text": text}, picture]}


def second_turn() -> str:
    said = {"role": "assistant", "content": ask(user())}
    return ask(user(), said, {"role": "user", "content": probe.AGAIN})


try:
    probe.run(
        picture=lambda: ask(user()),
        pdf="documents go through the engine that is set in its admin panel: see the row of Mistral OCR",
        system=lambda: ask({"role": "system", "content": probe.SYSTEM}, user()),
        second_turn=second_turn,
    )
finally:
    webui.terminate()
    webui.wait(60)
