"""OpenAI's Python client, chat completions: streamed, as most programs do."""

import probe
from openai import OpenAI

client = OpenAI(base_url=probe.API, api_key="none")


def ask(*messages: dict) -> str:
    stream = client.chat.completions.create(model=probe.MODEL, messages=list(messages), stream=True)
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


def user(*parts: dict, text: str = probe.PROMPT) -> dict:
    return {"role": "user", "content": [{"type": "text", "text": text}, *parts]}


picture = {"type": "image_url", "image_url": {"url": probe.data_url(probe.PICTURE)}}
pdf = {"type": "file", "file": {"filename": "page.pdf", "file_data": probe.data_url(probe.PDF)}}


def second_turn() -> str:
    first = ask(user(picture))
    again = {"role": "user", "content": probe.AGAIN}
    return ask(user(picture), {"role": "assistant", "content": first}, again)


probe.run(
    picture=lambda: ask(user(picture)),
    pdf=lambda: ask(user(pdf)),
    system=lambda: ask({"role": "system", "content": probe.SYSTEM}, user(picture)),
    second_turn=second_turn,
)
