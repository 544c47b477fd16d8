"""Mistral's client: a picture as a data URL, a PDF by upload and signed URL."""

import probe
from mistralai.client import Mistral

NONE = "OCR has no messages"
client = Mistral(server_url=probe.URL, api_key="none")


def read(document: dict) -> str:
    answer = client.ocr.process(model="mistral-ocr-latest", document=document, include_image_base64=True)
    return "\n\n".join(page.markdown for page in answer.pages)


def pdf() -> str:
    file = client.files.upload(file={"file_name": "page.pdf", "content": probe.PDF.read_bytes()}, purpose="ocr")
    try:
        url = client.files.get_signed_url(file_id=file.id, expiry=1).url
        return read({"type": "document_url", "document_url": url})
    finally:
        client.files.delete(file_id=file.id)


probe.run(
    picture=lambda: read({"type": "image_url", "image_url": probe.data_url(probe.PICTURE)}),
    pdf=pdf,
    system=NONE,
    second_turn=NONE,
)
