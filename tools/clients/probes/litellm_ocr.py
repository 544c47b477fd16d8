"""LiteLLM's ocr(), which speaks Mistral's form."""

import litellm
import probe

NONE = "ocr() has no messages"


def read(document: dict) -> str:
    answer = litellm.ocr(
        model="mistral/mistral-ocr-latest", document=document, api_base=probe.API, api_key="none"
    )  # fmt: skip
    return "\n\n".join(page.markdown for page in answer.pages)


probe.run(
    picture=lambda: read({"type": "image_url", "image_url": probe.data_url(probe.PICTURE)}),
    pdf=lambda: read({"type": "document_url", "document_url": probe.data_url(probe.PDF)}),
    system=NONE,
    second_turn=NONE,
)
