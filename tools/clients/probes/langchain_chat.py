"""LangChain's ChatOpenAI with its standard content blocks."""

import base64

import probe
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI

model = ChatOpenAI(model=probe.MODEL, base_url=probe.API, api_key="none")


def block(kind: str, path, mime: str) -> dict:
    data = base64.b64encode(path.read_bytes()).decode()
    return {"type": kind, "base64": data, "mime_type": mime, "filename": path.name}


def user(part: dict) -> HumanMessage:
    return HumanMessage(content=[{"type": "text", "text": probe.PROMPT}, part])


def ask(*messages) -> str:
    return str(model.invoke(list(messages)).content)


picture = block("image", probe.PICTURE, "image/png")
pdf = block("file", probe.PDF, "application/pdf")


def second_turn() -> str:
    return ask(user(picture), AIMessage(content=ask(user(picture))), HumanMessage(content=probe.AGAIN))


probe.run(
    picture=lambda: ask(user(picture)),
    pdf=lambda: ask(user(pdf)),
    system=lambda: ask(SystemMessage(content=probe.SYSTEM), user(picture)),
    second_turn=second_turn,
)
