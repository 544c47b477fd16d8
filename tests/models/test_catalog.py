"""The built-in catalogue and how model kinds and variants are spelled."""

from __future__ import annotations

from pathlib import Path

import pytest

from models import catalog, paths
from models.catalog import require_computed
from models.model_errors import ConfigError


@pytest.mark.parametrize("spelling", ["deepseek", "deepseek-ocr", "deepseek_ocr", "DeepSeek-OCR"])
def test_deepseek_kinds_of_all_spellings_are_one_family(spelling: str) -> None:
    assert catalog.normalise_family(spelling) == "deepseek-ocr"


@pytest.mark.parametrize("spelling", ["paddle_ocr_vl", "paddleocr-vl", "paddleocr_vl", "PaddleOCR-VL"])
def test_paddle_kinds_of_all_spellings_are_one_family(spelling: str) -> None:
    assert catalog.normalise_family(spelling) == "paddleocr-vl"


def test_an_unknown_kind_is_no_family() -> None:
    assert catalog.normalise_family("tesseract") is None


@pytest.mark.parametrize(("suffix", "dtype"), [("q4", "q4"), ("q8", "q8"), ("q4k", "q4"), ("q6k", "q8"), ("q8k", "q8")])
def test_dtype_suffixes_name_variants(suffix: str, dtype: str) -> None:
    assert catalog.split_variant(f"deepseek-ocr-{suffix}") == ("deepseek-ocr", dtype)


def test_default_dtype_is_float16_on_gpus_and_by_size_on_the_cpu() -> None:
    assert [catalog.default_dtype(device, 5_000_000) for device in ("cpu", "cuda", "coreml")] == ["f32", "f16", "f16"]
    assert [catalog.default_dtype("cpu", count) for count in (99_999_999, 100_000_000, None)] == ["f32", "q8", "q8"]


def test_plain_ids_name_no_variant() -> None:
    assert catalog.split_variant("deepseek-ocr") is None
    assert catalog.split_variant("-q8") is None


def test_every_id_is_a_safe_folder_name_and_the_builtin_model_is_packaged() -> None:
    for model_id in catalog.CATALOG:
        paths.check_model_id(model_id)
    assert Path(catalog.CATALOG["tiny-ocr"].source) == Path(catalog.__file__).parent / "tiny_ocr"


def test_a_family_that_is_not_there_yet_is_an_error_only_when_used() -> None:
    catalog.require_supported(catalog.CATALOG["deepseek-ocr"])
    with pytest.raises(ConfigError, match=r"'hunyuan-ocr'.*not support.*deepseek-ocr"):
        catalog.require_supported(catalog.CATALOG["hunyuan-ocr"])


@pytest.mark.parametrize(("device", "instead"), [("cpu", "q8"), ("coreml", "f16")])
def test_bfloat16_without_cuda_is_refused_with_what_to_take_instead(device, instead) -> None:
    with pytest.raises(ConfigError, match=rf"bf16 is for --device cuda; {device} .* take --dtype {instead}"):
        require_computed("bf16", device)


@pytest.mark.parametrize(("dtype", "device"), [("bf16", "cuda"), ("f32", "cuda"), ("f16", "cpu"), ("q4", "coreml")])
def test_what_a_device_computes_is_not_refused(dtype, device) -> None:
    require_computed(dtype, device)
