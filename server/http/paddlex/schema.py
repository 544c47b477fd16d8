"""The body of /layout-parsing: the fields of PaddleX's PaddleOCR-VL service."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from models.layout.page_rules import PageRules
from server.api_errors import BadRequest

# PaddleX's flags that this server cannot carry out, and their allowed values.
_UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "useDocOrientationClassify": (False,),
    "useDocUnwarping": (False,),
    "layoutNms": (True,),
    "layoutUnclipRatio": (1, 1.0, [1, 1], [1.0, 1.0]),
    "layoutMergeBboxesMode": (),
    "layoutShapeMode": ("rect", "auto"),
    "relevelTitles": (False,),
    "vlmExtraArgs": ({},),
}
# PaddleX's names of settings -> this server's.
_SETTINGS: Mapping[str, str] = {
    "repetitionPenalty": "repetition_penalty", "temperature": "temperature", "topP": "top_p",
    "minPixels": "min_pixels", "maxPixels": "max_pixels", "maxNewTokens": "max_new_tokens",
}  # fmt: skip


class LayoutParsingRequest(BaseModel):
    """A document to be read with its layout, as PaddleX's clients send it."""

    model_config = ConfigDict(extra="ignore", strict=True)

    file: str = Field(description="base64 of a PDF or a picture, or an http(s) address where the server allows it")
    fileType: Literal[0, 1] | None = Field(default=None, description="0 PDF, 1 picture; it is looked at all the same")
    model: str | None = Field(default=None, max_length=200, description="id of a model; default: this server's")
    useLayoutDetection: bool | None = None
    useChartRecognition: bool | None = None
    useSealRecognition: bool | None = None
    useOcrForImageBlock: bool | None = None
    layoutThreshold: float | dict[str, float] | None = None
    promptLabel: Literal["ocr", "table", "formula", "chart", "seal", "spotting"] | None = None
    formatBlockContent: bool | None = None
    mergeLayoutBlocks: bool | None = None
    markdownIgnoreLabels: list[str] | None = None
    prettifyMarkdown: bool | None = None
    showFormulaNumber: bool | None = None
    restructurePages: bool | None = None
    mergeTables: bool | None = None
    visualize: bool | None = None
    repetitionPenalty: float | None = None
    temperature: float | None = None
    topP: float | None = None
    minPixels: int | None = None
    maxPixels: int | None = None
    maxNewTokens: int | None = None
    useDocOrientationClassify: bool | None = None
    useDocUnwarping: bool | None = None
    layoutNms: bool | None = None
    layoutUnclipRatio: Any = None
    layoutMergeBboxesMode: Any = None
    layoutShapeMode: str | None = None
    relevelTitles: bool | None = None
    vlmExtraArgs: dict[str, Any] | None = None

    @property
    def stream(self) -> bool:
        """False: answers are not streamed."""
        return False

    def check(self) -> None:
        """Refuse flags that cannot be carried out.

        Raises
        ------
        BadRequest
            naming the flag and its allowed values.
        """
        for name, allowed in _UNSUPPORTED.items():
            value = getattr(self, name)
            if value is not None and value not in allowed:
                choices = " or ".join(repr(one).lower() for one in allowed)
                raise BadRequest(
                    f"{name} {value!r:.60} is not supported; leave it out{f' or send {choices}' if choices else ''}",
                    param=name,
                )

    def settings(self) -> dict[str, Any]:
        """The inference settings that the request sets, by this server's names."""
        given = {ours: getattr(self, theirs) for theirs, ours in _SETTINGS.items()}
        return {name: value for name, value in given.items() if value is not None}

    def rules(self) -> dict[str, Any]:
        """The layout rules that the request changes.

        Raises
        ------
        BadRequest
            for thresholds by label.
        """
        also = {"chart": self.useChartRecognition, "seal": self.useSealRecognition, "image": self.useOcrForImageBlock}
        changed: dict[str, Any] = {}
        if any(wish is not None for wish in also.values()):
            changed["read_also"] = [label for label, wish in also.items() if wish]
        if isinstance(self.layoutThreshold, dict):
            raise BadRequest(
                "layoutThreshold for single labels is not supported; send one number", param="layoutThreshold"
            )
        given = {
            "threshold": self.layoutThreshold, "join_text": self.mergeLayoutBlocks, "hidden": self.markdownIgnoreLabels,
            "formula_numbers": None if self.showFormulaNumber is None else "tag" if self.showFormulaNumber else "hide",
        }  # fmt: skip
        return changed | {name: value for name, value in given.items() if value is not None}

    def told(self, rules: PageRules) -> dict[str, Any]:
        """``model_settings`` of the answer."""
        return {
            "use_doc_preprocessor": False,
            "use_layout_detection": self.useLayoutDetection is not False,
            "use_chart_recognition": "chart" in rules.read_also,
            "use_seal_recognition": "seal" in rules.read_also,
            "use_ocr_for_image_block": "image" in rules.read_also,
            "format_block_content": bool(self.formatBlockContent),
            "merge_layout_blocks": rules.join_text,
            "markdown_ignore_labels": list(rules.hidden),
            "return_layout_polygon_points": False,
        }
