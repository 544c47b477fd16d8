"""LiteLLM's proxy between OpenAI's client and the server, started and stopped here."""

import json
import os
import secrets
import socket
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

import probe
from openai import OpenAI

with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
folder = Path(tempfile.mkdtemp(prefix="litellm-"))
entry = {
    "model_name": "ours",
    "litellm_params": {"model": f"openai/{probe.MODEL}", "api_base": probe.API, "api_key": "none"},
}
(folder / "config.yaml").write_text(json.dumps({"model_list": [entry]}))
log = (folder / "log").open("w")
key = f"sk-{secrets.token_hex(24)}"  # the proxy starts with a key only
proxy = subprocess.Popen(
    ["litellm", "--config", str(folder / "config.yaml"), "--host", "127.0.0.1", "--port", str(port)],
    env={**os.environ, "LITELLM_MASTER_KEY": key},
    stdout=log, stderr=log,
)  # fmt: skip


def wait() -> None:
    for _ in range(480):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health/liveliness", timeout=5)
            return
        except OSError as error:
            if proxy.poll() is not None:
                raise RuntimeError(f"the proxy ended: {(folder / 'log').read_text()[-300:]}") from error
            time.sleep(0.5)
    raise TimeoutError("the proxy did not come up")


client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=key)


def ask(*messages: dict) -> str:
    stream = client.chat.completions.create(model="ours", messages=list(messages), stream=True)
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


def user(*parts: dict) -> dict:
    return {"role": "user", "content": [{"type": "text", "text": probe.PROMPT}, *parts]}


picture = {"type": "image_url", "image_url": {"url": probe.data_url(probe.PICTURE)}}
pdf = {"type": "file", "file": {"filename": "page.pdf", "file_data": probe.data_url(probe.PDF)}}


def first() -> str:
    wait()
    return ask(user(picture))


def second_turn() -> str:
    said = {"role": "assistant", "content": ask(user(picture))}
    return ask(user(picture), said, {"role": "user", "content": probe.AGAIN})


try:
    probe.run(
        picture=first,
        pdf=lambda: ask(user(pdf)),
        system=lambda: ask({"role": "system", "content": probe.SYSTEM}, user(picture)),
        second_turn=second_turn,
    )
finally:
    proxy.terminate()
    proxy.wait(30)
