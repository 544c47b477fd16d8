"""Which clients are tried, from which packages, and by which probe."""

from __future__ import annotations

from dataclasses import dataclass

CASES = ("picture", "pdf", "system", "second turn")


@dataclass(frozen=True)
class Client:
    """One program. ``packages`` go into an environment of its own; the first is the one whose version is reported."""

    name: str
    packages: tuple[str, ...]
    probe: str  # file in probes/, a Python script or one for Node
    needs_torch: bool = False
    optional: bool = False  # tried only when asked for by name or flag

    @property
    def is_node(self) -> bool:
        return self.probe.endswith(".mjs")


CLIENTS = (
    Client("openai", ("openai",), "openai_chat.py"),
    Client("openai, Responses", ("openai",), "openai_responses.py"),
    Client("langchain-openai", ("langchain-openai",), "langchain_chat.py"),
    Client("llm", ("llm",), "llm_command.py"),
    Client("litellm", ("litellm[proxy]",), "litellm_library.py"),
    Client("litellm, proxy", ("litellm[proxy]",), "litellm_proxy.py"),
    Client("litellm, ocr()", ("litellm[proxy]",), "litellm_ocr.py"),
    Client("pydantic-ai", ("pydantic-ai-slim[openai]",), "pydantic_agent.py"),
    Client("markitdown", ("markitdown[all]", "openai"), "markitdown_convert.py"),
    Client("mistralai", ("mistralai",), "mistral_ocr.py"),
    # Not the package docling, which requires torchvision and with that several GB of CUDA.
    Client("docling", ("docling-slim[convert-core,format-pdf-pypdfium2,format-markdown,cli]",), "docling_vlm.py", True),
    Client("openai for Node", ("openai",), "openai_node.mjs"),
    Client("AI SDK", ("ai", "@ai-sdk/openai-compatible"), "ai_sdk.mjs"),
    Client("open-webui", ("open-webui",), "webui_chat.py", needs_torch=True, optional=True),
    Client("open-webui, Mistral OCR", ("open-webui",), "webui_ocr.py", needs_torch=True, optional=True),
)
