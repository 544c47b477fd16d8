"""Microsoft's markitdown, which has pictures described by a model."""

import probe
from markitdown import MarkItDown
from openai import OpenAI

NONE = "markitdown has no conversation"
client = OpenAI(base_url=probe.API, api_key="none")


def convert(path, **more: str) -> str:
    text = MarkItDown(llm_client=client, llm_model=probe.MODEL, **more).convert(str(path)).text_content
    return text.partition("# Description:")[2] or text


probe.run(
    picture=lambda: convert(probe.PICTURE),
    pdf="markitdown reads a PDF's own text without the model",
    system=NONE,
    second_turn=NONE,
)
