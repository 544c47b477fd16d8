"""dots.ocr's and LightOnOCR's graphs compute what transformers' own modules compute, and give the same text."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from export.export_errors import ExportError
from models.dots_ocr.images import MAX_PIXELS
from models.family import IMAGE_SLOT
from models.manifest import Manifest
from models.model_errors import InvalidInput
from models.registry import family_of
from runtime import Model
from tests.conftest import SHARED
from tests.export.largest_pass import largest_pass
from tests.export.proof import GREEDY, Proof, check_8_bit_tower, check_streams_beside_each_other, relative_error
from tools import dots_checkpoints as dots
from tools import lighton_checkpoints as lighton

WRITE: dict[str, Callable[..., Path]] = {
    "dots-ocr": dots.write_dots_checkpoint, "lighton-ocr": lighton.write_lighton_checkpoint,
}  # fmt: skip
PROMPTS = {"dots-ocr": f"{IMAGE_SLOT}Extract the text content from this image.", "lighton-ocr": IMAGE_SLOT}
# Scaled-down models; the last has the published heads.
SIZES: dict[str, dict[str, Any]] = {
    "dots-ocr": {
        "default": dots.DotsSizes(),
        "each head has keys": dots.DotsSizes(hidden=96, heads=6, kv_heads=6, layers=2, width=72, vision_layers=3),
        "real heads": dots.DotsSizes(
            hidden=256, heads=2, kv_heads=1, layers=2, width=256, vision_heads=2, vision_layers=1
        ),
    },
    "lighton-ocr": {
        "default": lighton.LightOnSizes(),
        "a head of its own": lighton.LightOnSizes(hidden=96, heads=6, kv_heads=6, layers=2, vision_layers=3, head=True),
        "real heads": lighton.LightOnSizes(
            hidden=128, heads=2, kv_heads=1, head_dim=128, layers=2, width=128, vision_heads=2, vision_layers=1
        ),
    },
}
OTHERS = [(family, name) for family, sizes in SIZES.items() for name in sizes if name != "default"]
FAMILIES = list(WRITE)
TINY = {
    "dots-ocr": dots.DotsSizes(layers=1, vision_layers=1),
    "lighton-ocr": lighton.LightOnSizes(layers=1, vision_layers=1),
}  # fmt: skip


@pytest.fixture(scope="module")
def proof_of(tmp_path_factory: pytest.TempPathFactory, export_checkpoint: Callable[..., Path]) -> Callable[..., Proof]:
    made: dict[tuple[str, str, int], Proof] = {}

    def make(family: str, name: str = "default", seed: int = 0) -> Proof:
        if (family, name, seed) not in made:
            checkpoint = WRITE[family](tmp_path_factory.mktemp(family), SIZES[family][name], seed=seed)
            made[family, name, seed] = Proof(checkpoint, exported(export_checkpoint, checkpoint, family))
        return made[family, name, seed]

    return make


def exported(
    export_checkpoint: Callable[..., Path], checkpoint: Path, family: str, dtype: str = "f32", **options: Any
) -> Path:
    return export_checkpoint(checkpoint, dtype, model_id=family, family=family, **options)


def edit_json(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))


LAYOUTS = {
    "dots-ocr": [(1, 1), (10, 12), (13, 700), (28, 5600), (300, 200), (620, 877)],
    "lighton-ocr": [(15, 15), (28, 28), (300, 200), (1500, 30), (71, 400), (620, 877)],  # odd rows and columns, too
}


@pytest.mark.parametrize(("family", "size"), [(family, size) for family in FAMILIES for size in LAYOUTS[family]])
def test_f32_equals_the_reference_for_every_layout(proof_of, picture, family, size) -> None:
    proof_of(family).check([picture(*size)], PROMPTS[family])


@pytest.mark.parametrize(("family", "name"), OTHERS)
def test_f32_equals_the_reference_for_other_sizes_of_the_model(proof_of, picture, family, name) -> None:
    proof_of(family, name, 1).check([picture(500, 320, 1)], PROMPTS[family])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_picture_beyond_the_limit_is_reduced_as_the_librarys_processor_reduces_it(proof_of, picture, family) -> None:
    """LightOnOCR's published limit, and the default of this program for dots.ocr."""
    proof, page = proof_of(family), picture(2480, 3508)
    tokens = {"dots-ocr": 60 * 42, "lighton-ocr": 55 * 39}[family]
    assert proof.family.prepare_image(page, {}).token_count == tokens
    (ours,) = proof.features([page])
    reference = proof.reference.features(*proof.reference.page(page)).detach().numpy()
    assert ours.shape == (tokens, proof.manifest.sizes.hidden_size)
    assert relative_error(ours, reference) < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_several_images_in_one_prompt_keep_their_order(proof_of, picture, family) -> None:
    proof_of(family).check([picture(300, 500, 1), picture(100, 120, 2)], f"{IMAGE_SLOT}{IMAGE_SLOT}Compare them.")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_without_an_image_is_answered(proof_of, family) -> None:
    proof_of(family).check([], "What is OCR?")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_longer_than_a_chunk_of_the_prefill_gives_the_same_logits(
    proof_of, picture, monkeypatch, family
) -> None:
    monkeypatch.setattr("runtime.decoder.PREFILL_CHUNK", 64)
    proof_of(family).check([picture(300, 420)], PROMPTS[family], steps=4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_rows_text_is_the_same_whatever_runs_beside_it(proof_of, picture, family) -> None:
    images = [picture(150 + 60 * i, 200, i) for i in range(4)]
    check_streams_beside_each_other(proof_of(family).folder, images, PROMPTS[family])


TOLERANCES = {"f16": (1e-2, 2e-2), "q8": (1e-2, 1e-1), "q4": (1e-2, 1.0)}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_the_smaller_dtypes_stay_close_to_float32(proof_of, picture, export_checkpoint, family, dtype) -> None:
    proof, image = proof_of(family), picture(300, 420)
    reference = proof.read([image], PROMPTS[family], 16)
    folder = exported(export_checkpoint, proof.checkpoint, family, dtype)
    features = proof.features([image], folder)
    of_features, of_logits = TOLERANCES[dtype]
    assert relative_error(features[0], reference.features[0]) < of_features
    assert relative_error(proof.logits(reference, features, folder), reference.logits) < of_logits


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_is_written_for_cuda(proof_of, export_checkpoint, family) -> None:
    """The exporter has checked the graphs; nothing here can run them."""
    manifest = Manifest.load(exported(export_checkpoint, proof_of(family).checkpoint, family, "bf16"))
    assert set(manifest.decoder.files) == {"cuda"}


@pytest.mark.parametrize("family", FAMILIES)
def test_an_8_bit_tower_keeps_the_features_and_the_report_says_so(proof_of, picture, export_checkpoint, family) -> None:
    proof, image = proof_of(family), picture(300, 420)
    folder = exported(export_checkpoint, proof.checkpoint, family, "q8", vision_dtype="q8", report=True)
    check_8_bit_tower(proof, image, folder)


@pytest.mark.skipif(sys.platform == "win32", reason="peak memory is read with the resource module")
def test_the_largest_page_is_seen_without_the_square_of_its_scores(tmp_path, export_checkpoint) -> None:
    """In a process of its own: 57,600 patches, whose scores would have 13 GB for each head."""
    sizes = dots.DotsSizes(layers=1, width=64, vision_heads=1, vision_layers=1, vision_mlp=64)
    folder = exported(export_checkpoint, dots.write_dots_checkpoint(tmp_path, sizes), "dots-ocr")
    patches, tokens, grown = largest_pass(folder, 3360, max_pixels=11_289_600)
    assert (patches, tokens) == (57_600, 14_400)
    assert grown < patches**2 * 4 / 10


def test_max_pixels_is_taken_up_to_the_published_limit_and_the_log_says_what_is_the_default(
    proof_of, picture, caplog
) -> None:
    proof, page = proof_of("dots-ocr"), picture(4000, 4000)
    with caplog.at_level("INFO"):
        family = family_of(proof.manifest)
    (said,) = [record.getMessage() for record in caplog.records]
    assert "2.0 megapixels" in said
    assert "11.3: max_pixels = 11289600" in said
    assert family.prepare_image(page, {}).token_count * 784 <= MAX_PIXELS
    assert family.prepare_image(page, {"max_pixels": 11_289_600}).token_count == 14_400
    with pytest.raises(InvalidInput, match=r"max_pixels is 11289601; it must be between 784 and 11289600"):
        family.prepare_image(page, {"max_pixels": 11_289_601})


@pytest.mark.parametrize("family", FAMILIES)
def test_its_smallest_image_is_one_block(proof_of, family) -> None:
    assert proof_of(family).family.smallest_image().token_count == 1
    assert len(proof_of(family).family.smallest_image({}).passes) == 1


def test_a_line_too_low_for_lighton_is_refused(proof_of, picture) -> None:
    with (
        Model.open(proof_of("lighton-ocr").folder, device="cpu", slots=1) as model,
        pytest.raises(InvalidInput, match="400 x 9, of which"),
    ):
        model.read(picture(400, 9), **GREEDY)


def test_lighton_is_asked_with_an_empty_system_turn_and_nothing_else(proof_of) -> None:
    start, end, image = (lighton.SPECIAL[f"<|{name}|>"] for name in ("im_start", "im_end", "image_pad"))
    proof = proof_of("lighton-ocr")
    text = lambda words: proof.tokenizer.encode(words, add_special_tokens=False).ids
    frame = [start, *text("system"), end, *text("\n"), start, *text("user\n")]
    answer = [end, *text("\n"), start, *text("assistant\n")]
    assert proof.prompt_ids(IMAGE_SLOT, [5]) == [*frame, *[image] * 5, *answer]
    assert proof.prompt_ids(f"{IMAGE_SLOT}grounding", [2]) == [*frame, image, image, *text("grounding"), *answer]
    with pytest.raises(InvalidInput, match=r"<\|im_end\|>, which is a control token"):
        proof.prompt_ids(f"{IMAGE_SLOT}a<|im_end|>b", [2])


def test_dots_is_asked_in_the_form_in_which_it_is_served(proof_of) -> None:
    special, proof = dots.SPECIAL, proof_of("dots-ocr")
    text = proof.tokenizer.encode("Extract the text content from this image.", add_special_tokens=False).ids
    assert proof.prompt_ids(PROMPTS["dots-ocr"], [3]) == [
        special["<|user|>"], special["<|img|>"], *[dots.IMAGE] * 3, special["<|endofimg|>"], *text,
        special["<|endofuser|>"], special["<|assistant|>"],
    ]  # fmt: skip


def test_answers_end_where_the_files_say_or_at_the_end_of_a_turn(tmp_path, export_checkpoint, proof_of) -> None:
    assert proof_of("dots-ocr").manifest.tokens.eos == dots.EOS
    assert proof_of("lighton-ocr").manifest.tokens.eos == (151645, 151643)
    mocr = dots.write_dots_checkpoint(tmp_path / "mocr", dots.DotsSizes(layers=1, eos=dots.EOS_OF_MOCR))
    assert Manifest.load(exported(export_checkpoint, mocr, "dots-ocr")).tokens.eos == dots.EOS_OF_MOCR
    edit_json(mocr / "generation_config.json", lambda document: document.update(eos_token_id=151643))  # as GGUF has it
    assert Manifest.load(exported(export_checkpoint, mocr, "dots-ocr")).tokens.eos == dots.EOS
    silent = lighton.write_lighton_checkpoint(tmp_path / "silent", lighton.LightOnSizes(layers=1))
    (silent / "generation_config.json").unlink()
    assert Manifest.load(exported(export_checkpoint, silent, "lighton-ocr")).tokens.eos == (151645,)


@pytest.mark.parametrize(
    ("family", "full", "config"),
    [("dots-ocr", dots.FULL_SIZE, "config.json"), ("lighton-ocr", lighton.FULL_SIZE, "config.derived.json")],
)
def test_the_generator_writes_the_published_names_shapes_and_config(family, full, config) -> None:
    place, generator = SHARED / "checkpoints" / family, dots if family == "dots-ocr" else lighton
    if not place.is_dir():
        pytest.skip(f"the published metadata are not at {place}")
    published = json.loads((place / "tensor_shapes.json").read_text())
    assert generator.tensor_shapes(full) == {name: tuple(shape) for name, shape in published.items()}
    assert generator.published_config(full) == json.loads((place / config).read_text())
    if family == "dots-ocr":
        assert dots.preprocessor_config(full) == json.loads((place / "preprocessor_config.json").read_text())
        added = json.loads((place / "added_tokens.partial.json").read_text())
        assert added == dots.SPECIAL
        for name, ends in (
            ("generation_config.json", dots.EOS),
            ("generation_config.dots.mocr.json", dots.EOS_OF_MOCR),
        ):
            assert json.loads((place / name).read_text())["eos_token_id"] == list(ends)
    else:
        assert lighton.processor_config(full) == json.loads((place / "processor_config.json").read_text())


Change = Callable[[dict[str, Any]], Any]
CONFIGS: list[tuple[str, str, Change, str]] = [
    ("dots-ocr", "config.json", lambda c: c.update(attention_bias=False), "attention_bias is False"),
    ("dots-ocr", "config.json", lambda c: c.update(hidden_act="gelu"), "hidden_act is 'gelu'"),
    ("dots-ocr", "config.json", lambda c: c.update(use_sliding_window=True), "sliding_window is"),
    ("dots-ocr", "config.json", lambda c: c.update(rope_scaling={"type": "yarn"}), "rope_type is 'yarn'"),
    ("dots-ocr", "config.json", lambda c: c.update(image_token_id=5), "image_token_id is 5, and the tokenizer has"),
    ("dots-ocr", "config.json", lambda c: c.pop("vision_config"), "no vision_config"),
    ("dots-ocr", "config.json", lambda c: c["vision_config"].update(use_bias=True), "vision_config: use_bias is True"),
    ("dots-ocr", "config.json", lambda c: c["vision_config"].update(post_norm=False), "post_norm is False"),
    ("dots-ocr", "config.json", lambda c: c["vision_config"].update(hidden_size=32), "hidden_size is 32, and the deco"),
    ("dots-ocr", "config.json", lambda c: c["vision_config"].update(temporal_patch_size=2), "temporal_patch_size is 2"),
    ("dots-ocr", "preprocessor_config.json", lambda c: c.update(temporal_patch_size=2), "temporal_patch_size is 2"),
    ("dots-ocr", "preprocessor_config.json", lambda c: c.update(patch_size=16), "patch_size is 16, and the model's is"),
    ("dots-ocr", "preprocessor_config.json", lambda c: c.pop("max_pixels"), "no min_pixels and max_pixels"),
    ("dots-ocr", "preprocessor_config.json", lambda c: c.update(min_pixels=9e9), "expected two whole numbers in order"),
    ("lighton-ocr", "config.json", lambda c: c.update(multimodal_projector_bias=True), "projector_bias is True"),
    ("lighton-ocr", "config.json", lambda c: c.update(projector_hidden_act="silu"), "projector_hidden_act is 'silu'"),
    ("lighton-ocr", "config.json", lambda c: c.update(vision_feature_layer=-2), "vision_feature_layer is -2"),
    ("lighton-ocr", "config.json", lambda c: c["text_config"].update(attention_bias=True), "attention_bias is True"),
    ("lighton-ocr", "config.json", lambda c: c["text_config"].pop("head_dim"), "no head_dim"),
    ("lighton-ocr", "config.json", lambda c: c["vision_config"].update(head_dim=64), "3 heads of 64 are not 48"),
    ("lighton-ocr", "config.json", lambda c: c["vision_config"].update(hidden_act="gelu"), "hidden_act is 'gelu'"),
    ("lighton-ocr", "config.json", lambda c: c.update(tie_word_embeddings=False), "missing: lm_head.weight"),
    ("lighton-ocr", "config.json", lambda c: c.update(architectures=["DotsOCRForCausalLM"]), "family 'dots-ocr'"),
    ("lighton-ocr", "processor_config.json", lambda c: c["image_processor"].update(resample=2), "resample is 2"),
    ("lighton-ocr", "processor_config.json", lambda c: c["image_processor"].update(size={}), "longest_edge is None"),
    ("lighton-ocr", "processor_config.json", lambda c: c.pop("image_processor"), "no image settings"),
]  # fmt: skip


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[[str], Path]:
    return lambda family: WRITE[family](tmp_path / family, TINY[family])


@pytest.mark.parametrize(("family", "file", "change", "said"), CONFIGS)
def test_what_the_exporter_does_not_know_is_named(tiny, export_checkpoint, family, file, change, said) -> None:
    checkpoint = tiny(family)
    edit_json(checkpoint / file, change)
    with pytest.raises(ExportError, match=said):
        exported(export_checkpoint, checkpoint, family)


@pytest.mark.parametrize("token", ["<|endofimg|>", "<|endofassistant|>", "<|imgpad|>"])
def test_a_tokenizer_without_a_token_of_the_prompt_is_refused_by_name(tiny, export_checkpoint, token) -> None:
    from tools.random_checkpoints import byte_tokenizer

    checkpoint = tiny("dots-ocr")
    left = {name: number for name, number in dots.SPECIAL.items() if name != token}
    byte_tokenizer(left).save(str(checkpoint / "tokenizer.json"))
    with pytest.raises(ExportError, match=r"tokenizer has .*" + token.replace("|", r"\|")):
        exported(export_checkpoint, checkpoint, "dots-ocr")


def test_tensors_that_are_missing_or_unknown_are_named(tiny, export_checkpoint) -> None:
    checkpoint = tiny("dots-ocr")
    tensors = load_file(checkpoint / "model.safetensors")
    tensors["vision_tower.blocks.0.attn.q_norm.weight"] = tensors.pop("vision_tower.blocks.0.norm1.weight")
    save_file(tensors, checkpoint / "model.safetensors")
    with pytest.raises(ExportError, match=r"(?s)missing: .*norm1.weight.*unexpected: .*q_norm.weight"):
        exported(export_checkpoint, checkpoint, "dots-ocr")


def test_a_stored_head_of_lighton_is_taken_and_a_tied_one_is_the_embedding(tiny, export_checkpoint) -> None:
    checkpoint = tiny("lighton-ocr")
    tied = Manifest.load(exported(export_checkpoint, checkpoint, "lighton-ocr"))
    tensors = load_file(checkpoint / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.language_model.embed_tokens.weight"].copy()
    save_file(tensors, checkpoint / "model.safetensors")
    both = Manifest.load(exported(export_checkpoint, checkpoint, "lighton-ocr"))
    assert tied.files["decoder.onnx.data"] == both.files["decoder.onnx.data"]


def test_a_layouts_boxes_are_pixels_of_the_page_whatever_the_model_saw(proof_of, picture, monkeypatch) -> None:
    """The model's own answer names pixels of a picture of half the size."""
    proof = proof_of("dots-ocr")
    cells = [
        {"bbox": [10, 20, 110, 60], "category": "Section-header", "text": "## Sums"},
        {"bbox": [0, 100, 280, 280], "category": "Picture"},
    ]
    answer = proof.tokenizer.encode(json.dumps(cells), add_special_tokens=False).ids

    def submit(sequence: Any) -> None:
        for token in [*answer, *proof.manifest.tokens.eos]:
            if not sequence.finished:
                logits = np.zeros(proof.manifest.sizes.vocabulary, np.float32)
                logits[token] = 10
                sequence.accept(logits)

    with Model.open(proof.folder, device="cpu", slots=1) as model:
        monkeypatch.setattr(model.engine, "submit", submit)
        read = model.read(picture(560, 560), max_new_tokens=400, max_pixels=280 * 280)
    assert [(block.kind, block.text, block.box) for block in read.finished.blocks] == [
        ("title", "Sums", (20, 40, 220, 120)), ("figure", "", (0, 200, 560, 560)),
    ]  # fmt: skip
    assert read.text == "## Sums\n\n<!-- image [0, 200, 560, 560] -->"
