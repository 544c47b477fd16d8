"""docling's pipeline for vision-language models behind an API."""

import probe
from docling.backend.pypdfium2_backend import PyPdfiumDocumentBackend
from docling.datamodel.base_models import InputFormat
from docling.datamodel.pipeline_options import VlmPipelineOptions
from docling.datamodel.pipeline_options_vlm_model import ApiVlmOptions, ResponseFormat
from docling.document_converter import DocumentConverter, ImageFormatOption, PdfFormatOption
from docling.pipeline.vlm_pipeline import VlmPipeline

NONE = "docling has no conversation"
options = VlmPipelineOptions(
    enable_remote_services=True,
    vlm_options=ApiVlmOptions(
        url=f"{probe.API}/chat/completions", params={"model": probe.MODEL, "max_tokens": 1024},
        prompt="Convert this page to markdown.", timeout=120, response_format=ResponseFormat.MARKDOWN,
    ),
)  # fmt: skip
given = {"pipeline_cls": VlmPipeline, "pipeline_options": options}
converter = DocumentConverter(
    format_options={
        InputFormat.PDF: PdfFormatOption(backend=PyPdfiumDocumentBackend, **given),
        InputFormat.IMAGE: ImageFormatOption(**given),
    }
)


def read(path) -> str:
    return converter.convert(path).document.export_to_markdown()


probe.run(picture=lambda: read(probe.PICTURE), pdf=lambda: read(probe.PDF), system=NONE, second_turn=NONE)
