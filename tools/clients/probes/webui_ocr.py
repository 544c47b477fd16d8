"""Open WebUI's "Mistral OCR" engine for documents, by the class that its server calls."""

import os
import tempfile

os.environ["DATA_DIR"] = tempfile.mkdtemp(prefix="open-webui-")
os.environ["WEBUI_SECRET_KEY"] = "for this run only"
os.environ["FROM_INIT_PY"] = "true"  # as the command open-webui sets it: this is the package, not a checkout
os.environ["HF_HUB_OFFLINE"] = "1"

import probe
from open_webui.retrieval.loaders.mistral import MistralLoader

NONE = "an engine for documents has no conversation"


def read(path, *, as_data_url: bool) -> str:
    loader = MistralLoader(base_url=probe.API, api_key="none", file_path=str(path), use_base64=as_data_url)
    documents = loader.load()
    if failed := [one for one in documents if "error" in one.metadata]:
        raise RuntimeError(failed[0].page_content)
    return "\n\n".join(one.page_content for one in documents)


probe.run(
    picture=lambda: read(probe.PICTURE, as_data_url=True),
    pdf=lambda: read(probe.PDF, as_data_url=False),  # upload, signed URL, OCR, delete
    system=NONE,
    second_turn=NONE,
)
