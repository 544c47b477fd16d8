"""GLM-OCR's graphs compute what transformers' own modules compute, and give the same text, on every layout."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from export.checkpoint import Checkpoint
from export.export_errors import ExportError
from export.glm_ocr import GlmOcrExport
from models.family import task_prompt
from models.glm_ocr.output import TASKS
from models.manifest import Manifest
from models.model_errors import InvalidInput
from models.registry import family_of
from runtime import Model
from tests.conftest import SHARED
from tests.export.proof import GREEDY, Proof, check_together_as_alone, cosines, relative_error
from tests.export.twins import twin_of
from tools.glm_checkpoints import (
    FULL_SIZE,
    IMAGE,
    SPECIAL_IDS,
    GlmSizes,
    preprocessor_config,
    published_config,
    small_tokenizer,
    tensor_shapes,
    write_glm_checkpoint,
)

TEXT = TASKS["text"]
GOLDEN = Path(__file__).parents[1] / "models" / "golden"

SIZES = {
    "default": GlmSizes(),
    "other heads": GlmSizes(hidden=96, heads=6, kv_heads=1, layers=2, vision_heads=2, width=64, vision_layers=3),
    "real heads": GlmSizes(
        hidden=96, layers=2, heads=4, head_dim=128, sections=(16, 24, 24), width=128, vision_heads=2, drafts=0
    ),
}  # fmt: skip

ProofOf = Callable[..., Proof]


@pytest.fixture(scope="module")
def proof_of(tmp_path_factory: pytest.TempPathFactory, export_checkpoint: Callable[..., Path]) -> ProofOf:
    made: dict[Any, Proof] = {}

    def make(sizes: GlmSizes = SIZES["default"], seed: int = 0) -> Proof:
        if (sizes, seed) not in made:
            checkpoint = write_glm_checkpoint(tmp_path_factory.mktemp("glm"), sizes, seed=seed)
            made[sizes, seed] = Proof(checkpoint, export_checkpoint(checkpoint, "f32", "glm-ocr", "glm-ocr"))
        return made[sizes, seed]

    return make


LAYOUTS = [
    pytest.param((100, 100), id="near the smallest area"),
    pytest.param((1, 1), id="one pixel"),
    pytest.param((27, 13), id="sides under a block"),
    pytest.param((300, 20), id="a line of small print"),
    pytest.param((28, 2800), id="upright"),
    pytest.param((2800, 28), id="lying"),
    pytest.param((620, 877), id="a page"),
]


@pytest.mark.parametrize("size", LAYOUTS)
def test_f32_equals_the_reference_for_every_layout(proof_of, picture, size) -> None:
    proof_of().check([picture(*size)], TEXT)


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", [name for name in SIZES if name != "default"])
def test_f32_equals_the_reference_for_other_sizes_of_the_model(proof_of, picture, name, seed) -> None:
    proof_of(SIZES[name], seed=seed).check([picture(500, 320, seed)], TASKS["table"])


def test_several_images_in_one_prompt_keep_their_order(proof_of, picture) -> None:
    images = [picture(500, 200, 1), picture(200, 600, 2), picture(60, 60, 3)]
    proof_of().check(images, task_prompt(TASKS, "text", images=3))


def test_a_prompt_longer_than_one_prefill_chunk_gives_the_same_text(proof_of, picture, monkeypatch) -> None:
    monkeypatch.setattr("runtime.decoder.PREFILL_CHUNK", 64)
    proof_of().check([picture(300, 900)], TEXT)


def test_the_cache_grows_under_an_answer_without_changing_it(proof_of, picture, monkeypatch) -> None:
    monkeypatch.setattr("runtime.kv_cache.FIRST_CAPACITY", 16)
    proof_of().check([picture(200, 180)], TEXT)


def test_an_image_beyond_the_products_limit_is_made_smaller_and_a_setting_lets_it_be(proof_of, picture) -> None:
    family, page = proof_of().family, picture(1654, 2339)
    assert (
        family.prepare_image(page, {}).token_count < family.prepare_image(page, {"max_pixels": 4_816_896}).token_count
    )
    assert family.prepare_image(page, {"max_pixels": 4_816_896}).token_count == 4_956  # as published


def test_a_rows_text_is_the_same_whatever_runs_beside_it(proof_of, picture) -> None:
    jobs = [([picture(*size, seed)], task) for seed, (size, task) in enumerate([
        ((300, 900), "text"), ((900, 300), "text"), ((400, 400), "table"), ((1, 1), "formula"), ((1400, 28), "text"),
    ])]  # fmt: skip
    ask = lambda model, job: model.read(job[0], task=job[1], max_new_tokens=32, raw=True, **GREEDY).tokens
    check_together_as_alone(proof_of().folder, ask, jobs)


def test_streamed_pieces_are_the_whole_answer(proof_of, picture) -> None:
    with Model.open(proof_of().folder, device="cpu", slots=1) as model:
        for task, words in (("text", None), ("table", None), ("extract", '{"total": ""}')):
            settings = {**GREEDY, "max_new_tokens": 32}
            whole = model.read(picture(200, 100), words, task=task, **settings).text
            assert "".join(model.stream(picture(200, 100), words, task=task, **settings)) == whole


# Tokens and prompts.


def test_prompts_have_the_published_ids(proof_of) -> None:
    """Whatever the text is: its bytes stand at their own numbers in the stand-in's vocabulary."""
    proof = proof_of()
    for task in ("text", "formula", "table"):
        words = TASKS[task].removeprefix("<image>")
        ids = proof.prompt_ids(TASKS[task], [4])
        assert ids == [59248, 59250, 59253, 10, 59256, *[59280] * 4, 59257, *words.encode(), 59254, 10]
    assert json.loads((GOLDEN / "glm_added_tokens.json").read_text()) == SPECIAL_IDS
    published = json.loads((GOLDEN / "glm_tokens.json").read_text())
    assert all(proof.tokenizer.encode(text).ids == published[text] for text in ("\n", "123"))
    assert proof.manifest.tokens.image == IMAGE
    assert set(proof.manifest.tokens.eos) == {59246, 59253}


def test_what_is_to_be_extracted_is_a_json_object(proof_of, picture) -> None:
    proof = proof_of()
    template = '{"date": "", "total": ""}'
    ids = proof.prompt_ids(task_prompt(TASKS, "extract", template), [1])
    text = proof.tokenizer.decode(ids, skip_special_tokens=False)
    assert text == (
        "[gMASK]<sop><|user|>\n<|begin_of_image|><|image|><|end_of_image|>请按下列JSON格式输出图中信息:\n"
        f"{template}<|assistant|>\n"
    )
    with Model.open(proof.folder, device="cpu", slots=1) as model:
        for wrong in ("the total", "[]", "{}", '{"a": '):
            with pytest.raises(InvalidInput, match="must be JSON: an object"):
                model.read(picture(60, 60), wrong, task="extract")


def test_a_prompt_with_a_control_token_is_refused(proof_of) -> None:
    with pytest.raises(InvalidInput, match="control token"):
        proof_of().prompt_ids("<image>Text<|assistant|>", [1])


def test_a_picture_narrower_than_1_to_200_is_refused(proof_of, picture) -> None:
    with Model.open(proof_of().folder, device="cpu", slots=1) as model, pytest.raises(InvalidInput, match="200 times"):
        model.read(picture(28, 5800))


# Checkpoints.


def edited(source: Path, target: Path, file: str = "config.json", part: str | None = None, **changes: Any) -> Path:
    """A copy of a checkpoint with other values in one of its JSON files."""
    shutil.copytree(source, target)
    document = json.loads((target / file).read_text())
    (document if part is None else document[part]).update(changes)
    (target / file).write_text(json.dumps(document))
    return target


def exporter(folder: Path) -> GlmOcrExport:
    return GlmOcrExport(Checkpoint(folder), {})


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("text_config", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ("text_config", {"attention_bias": True}, "attention_bias is True"),
        ("text_config", {"use_qk_norm": True}, "use_qk_norm is True"),
        ("text_config", {"sliding_window": 4096}, "sliding_window is 4096"),
        ("text_config", {"rope_parameters": {"rope_type": "yarn", "mrope_section": [4, 6, 6]}}, "rope_type is 'yarn'"),
        ("text_config", {"rope_parameters": {"mrope_section": [4, 6]}}, "mrope_section is .4, 6.; expected three"),
        (
            "text_config",
            {"rope_parameters": {"mrope_section": [4, 6, 6], "partial_rotary_factor": 0.5}},
            "which this exporter does not compute",
        ),
        ("text_config", {"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ("text_config", {"num_nextn_predict_layers": "one"}, "num_nextn_predict_layers is 'one'"),
        ("vision_config", {"attention_bias": False}, "attention_bias is False"),
        ("vision_config", {"out_hidden_size": 32}, "out_hidden_size is 32"),
    ],
)
def test_values_that_the_graphs_do_not_compute_are_refused_by_name(proof_of, tmp_path, part, changes, message) -> None:
    folder = edited(proof_of().checkpoint, tmp_path / "edited", part=part, **changes)
    with pytest.raises(ExportError, match=message):
        exporter(folder)


def test_another_image_preparation_is_refused(proof_of, tmp_path) -> None:
    folder = edited(proof_of().checkpoint, tmp_path / "edited", "preprocessor_config.json", temporal_patch_size=1)
    with pytest.raises(ExportError, match="temporal_patch_size is 1"):
        _ = exporter(folder).image_rules


def test_limits_are_of_two_frames(proof_of) -> None:
    rules = exporter(proof_of().checkpoint).image_rules
    assert (rules.min_pixels, rules.max_pixels) == (6_272, 4_816_896)


def vocabulary(**changes: int) -> dict[str, int]:
    return {**small_tokenizer().get_vocab(with_added_tokens=True), **changes}


def test_a_tokenizer_with_other_ids_is_refused(proof_of) -> None:
    with pytest.raises(ExportError, match=r"gives <\|image\|> the id 7, and config.json says 59280"):
        exporter(proof_of().checkpoint).tokens(vocabulary(**{"<|image|>": 7}))


def test_a_tokenizer_that_encodes_the_golden_texts_otherwise_is_found_at_export(
    proof_of, tmp_path, export_checkpoint
) -> None:
    """Digits come one by one in the published one."""
    folder = shutil.copytree(proof_of().checkpoint, tmp_path / "edited")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["123"] = 300
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ExportError, match=r"encodes '123' as \[300\], the published one as \[49, 50, 51\]"):
        export_checkpoint(folder, "f32", "glm-ocr", "glm-ocr")


def test_the_users_turn_ends_an_answer_whatever_the_configs_say(proof_of, tmp_path) -> None:
    folder = edited(proof_of().checkpoint, tmp_path / "edited", "generation_config.json", eos_token_id=59246)
    assert set(exporter(folder).tokens(vocabulary()).eos) == {59246, 59253}


def test_a_folder_without_a_template_gets_the_published_form(proof_of, tmp_path) -> None:
    folder = shutil.copytree(proof_of().checkpoint, tmp_path / "edited")
    ids = SPECIAL_IDS
    theirs = exporter(folder).prompt_rules(ids, ())
    (folder / "chat_template.jinja").unlink()
    ours = exporter(folder).prompt_rules(ids, ())
    from models.chat_template import rendered

    assert ours.chat_template != theirs.chat_template
    for images in (0, 1, 3):
        assert rendered("Text Recognition:", images, ours) == rendered("Text Recognition:", images, theirs)


def test_a_template_that_writes_another_prompt_is_refused_with_both(proof_of, tmp_path) -> None:
    folder = shutil.copytree(proof_of().checkpoint, tmp_path / "edited")
    template = (folder / "chat_template.jinja").read_text().replace("'<|user|>\\n'", "'<|user|>'")
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(ExportError, match=r"writes '\[gMASK\]<sop><\|user\|><\|begin.* was trained with"):
        exporter(folder).prompt_rules(SPECIAL_IDS, ())


@pytest.mark.parametrize("told", [0, 1])
def test_layers_that_draft_tokens_may_be_there_or_not(proof_of, tmp_path, export_checkpoint, told) -> None:
    """Whatever the config says of them."""
    folder = edited(proof_of().checkpoint, tmp_path / "edited", part="text_config", num_nextn_predict_layers=told)
    if told:
        tensors = load_file(folder / "model.safetensors")
        save_file({n: t for n, t in tensors.items() if ".layers.3." not in n}, folder / "model.safetensors")
    export_checkpoint(folder, "f32", "glm-ocr", "glm-ocr")


def test_tensors_that_nobody_knows_are_named(proof_of, tmp_path, export_checkpoint) -> None:
    folder = shutil.copytree(proof_of().checkpoint, tmp_path / "edited")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.language_model.layers.1.self_attn.q_norm.weight"] = tensors["model.language_model.norm.weight"]
    gone = tensors.pop("model.language_model.layers.0.post_mlp_layernorm.weight")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ExportError) as raised:
        export_checkpoint(folder, "f32", "glm-ocr", "glm-ocr")
    assert "unexpected: model.language_model.layers.1.self_attn.q_norm.weight" in str(raised.value)
    assert f"missing: model.language_model.layers.0.post_mlp_layernorm.weight, expected [{len(gone)}]" in str(
        raised.value
    )


def test_a_tied_head_is_the_embedding(proof_of, picture, tmp_path, export_checkpoint) -> None:
    folder = edited(proof_of().checkpoint, tmp_path / "edited", part="text_config", tie_word_embeddings=True)
    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    Proof(folder, export_checkpoint(folder, "f32", "glm-ocr", "glm-ocr")).check([picture(200, 100)], TEXT, steps=4)


# Dtypes.

BOUNDS = {"f16": 5e-3, "q8": 6e-2, "q4": 0.6}


@pytest.mark.parametrize("dtype", BOUNDS)
def test_every_dtype_is_near_the_reference(proof_of, picture, export_checkpoint, dtype) -> None:
    proof, page = proof_of(), picture(300, 200)
    folder = export_checkpoint(proof.checkpoint, dtype, "glm-ocr", "glm-ocr")
    expected = proof.read([page], TEXT, 4)
    features = proof.features([page], folder)
    assert relative_error(features[0], expected.features[0]) < 5e-3
    found = proof.logits(expected, features, folder, [page])
    assert relative_error(found, expected.logits) < BOUNDS[dtype]
    with Model.open(folder, device="cpu", slots=1) as model:
        assert model.read(page, task="text", max_new_tokens=4, **GREEDY).finished.detail == "max_tokens"


def test_an_8_bit_tower_keeps_its_features(proof_of, picture, export_checkpoint) -> None:
    proof, page = proof_of(), picture(300, 200)
    folder = export_checkpoint(proof.checkpoint, "q8", "glm-ocr", "glm-ocr", vision_dtype="q8")
    (mine,), (theirs,) = proof.features([page], folder), proof.features([page])
    assert cosines(mine, theirs).min() > 0.99


@pytest.mark.parametrize("dtype", ["f16", "bf16", "q4"])
def test_graphs_for_cuda_compute_the_same(proof_of, picture, export_checkpoint, tmp_path, dtype) -> None:
    """Run here with float32 in place of their type."""
    proof, page = proof_of(), picture(300, 200)
    folder = export_checkpoint(proof.checkpoint, dtype, "glm-ocr", "glm-ocr")
    twin = twin_of(folder, tmp_path / "twin")
    expected = proof.read([page], TEXT, 2)
    features = proof.features([page], twin)
    assert relative_error(features[0], expected.features[0]) < (5e-2 if dtype == "bf16" else 5e-3)
    assert relative_error(proof.logits(expected, features, twin, [page]), expected.logits) < (
        0.6 if dtype == "q4" else 8e-2
    )


def test_a_report_measures_outliers_too(proof_of, export_checkpoint) -> None:
    folder = export_checkpoint(proof_of().checkpoint, "q8", "glm-ocr", "glm-ocr", vision_dtype="q8", report=True)
    report = Manifest.load(folder).report
    assert report is not None
    assert family_of(Manifest.load(folder)).tasks == TASKS


# The generator.


def test_the_generators_names_and_shapes_are_the_published_ones() -> None:
    file = SHARED / "checkpoints" / "glm-ocr" / "tensor_shapes.json"
    if not file.is_file():
        pytest.skip(f"the published names are not at {file}")
    published = {name: tuple(shape) for name, shape in json.loads(file.read_text()).items()}
    assert tensor_shapes(FULL_SIZE) == published
    assert sum(int(np.prod(shape)) for shape in published.values()) == 1_325_258_240


def test_the_generators_configs_are_the_published_ones() -> None:
    folder = SHARED / "checkpoints" / "glm-ocr"
    if not folder.is_dir():
        pytest.skip(f"the published configs are not at {folder}")
    assert published_config(FULL_SIZE) == json.loads((folder / "config.json").read_text())
    assert preprocessor_config(FULL_SIZE) == json.loads((folder / "preprocessor_config.json").read_text())


def test_the_pages_picture_is_cut_as_the_library_cuts_it(proof_of, picture) -> None:
    """Pixels of transparent pictures too: they lie on white."""
    proof = proof_of()
    image = Image.new("RGBA", (120, 90), (200, 10, 10, 0))
    (with_hole,), (white,) = proof.features([image]), proof.features([Image.new("RGB", (120, 90), "white")])
    assert np.array_equal(with_hole, white)


def test_a_padded_tokenizer_reads_prompts_whole(proof_of) -> None:
    tokenizer = Tokenizer.from_file(str(proof_of().folder / "tokenizer.json"))
    text = "<|begin_of_image|><|image|><|end_of_image|>"
    assert tokenizer.encode(text, add_special_tokens=False).ids == [59256, 59280, 59257]
