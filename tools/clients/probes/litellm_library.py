"""LiteLLM as a library."""

import litellm
import probe

ANSWER = {"model": f"openai/{probe.MODEL}", "api_base": probe.API, "api_key": "none"}


def ask(*messages: dict) -> str:
    return litellm.completion(messages=list(messages), **ANSWER).choices[0].message.content


def user(*parts: dict) -> dict:
    return {"role": "user", "content": [{"type": "text", "text": probe.PROMPT}, *parts]}


picture = {"type": "image_url", "image_url": {"url": probe.data_url(probe.PICTURE)}}
pdf = {"type": "file", "file": {"filename": "page.pdf", "file_data": probe.data_url(probe.PDF)}}


def second_turn() -> str:
    said = {"role": "assistant", "content": ask(user(picture))}
    return ask(user(picture), said, {"role": "user", "content": probe.AGAIN})


probe.run(
    picture=lambda: ask(user(picture)),
    pdf=lambda: ask(user(pdf)),
    system=lambda: ask({"role": "system", "content": probe.SYSTEM}, user(picture)),
    second_turn=second_turn,
)
