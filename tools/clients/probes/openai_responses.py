"""OpenAI's Python client, Responses."""

import probe
from openai import OpenAI

client = OpenAI(base_url=probe.API, api_key="none")


def ask(*items: dict, **more: str) -> str:
    return client.responses.create(model=probe.MODEL, input=list(items), **more).output_text


def user(*parts: dict) -> dict:
    return {"role": "user", "content": [{"type": "input_text", "text": probe.PROMPT}, *parts]}


picture = {"type": "input_image", "image_url": probe.data_url(probe.PICTURE)}
pdf = {"type": "input_file", "filename": "page.pdf", "file_data": probe.data_url(probe.PDF)}


def second_turn() -> str:
    first = ask(user(picture))
    said = {"role": "assistant", "content": first}
    return ask(user(picture), said, {"role": "user", "content": probe.AGAIN})


probe.run(
    picture=lambda: ask(user(picture)),
    pdf=lambda: ask(user(pdf)),
    system=lambda: ask(user(picture), instructions=probe.SYSTEM),
    second_turn=second_turn,
)
