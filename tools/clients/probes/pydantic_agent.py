"""pydantic-ai's agent with binary content."""

import probe
from pydantic_ai import Agent, BinaryContent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

model = OpenAIChatModel(probe.MODEL, provider=OpenAIProvider(base_url=probe.API, api_key="none"))
plain, polite = Agent(model), Agent(model, system_prompt=probe.SYSTEM)
picture = BinaryContent(probe.PICTURE.read_bytes(), media_type="image/png")
pdf = BinaryContent(probe.PDF.read_bytes(), media_type="application/pdf")


def second_turn() -> str:
    first = plain.run_sync([probe.PROMPT, picture])
    return plain.run_sync(probe.AGAIN, message_history=first.all_messages()).output


probe.run(
    picture=lambda: plain.run_sync([probe.PROMPT, picture]).output,
    pdf=lambda: plain.run_sync([probe.PROMPT, pdf]).output,
    system=lambda: polite.run_sync([probe.PROMPT, picture]).output,
    second_turn=second_turn,
)
