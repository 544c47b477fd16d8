"""What an export publishes: true sizes and hashes, the same bytes from one file and from many."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from export import pipeline
from models.manifest import FILE_NAME, Manifest
from models.model_errors import ManifestError
from tests.export.jobs import TINY, WEIGHTS, export, graph_bytes, leftovers
from tools.checkpoints import write_random_checkpoint


@pytest.mark.parametrize("dtype", pipeline.DTYPES)
def test_the_manifest_lists_exactly_the_files_with_true_sizes_and_hashes(checkpoint, target, dtype) -> None:
    manifest, _ = export(checkpoint, target, dtype=dtype)
    assert Manifest.load(target) == manifest
    manifest.verify(target)
    assert {file.name for file in target.iterdir()} == {*manifest.files, FILE_NAME}
    for graph in (manifest.vision, manifest.embed, manifest.decoder):
        assert set(graph.files.values()) <= set(manifest.files)
    assert not leftovers(target)
    assert (manifest.id, manifest.dtype, manifest.source.origin) == ("tiny", dtype, "directory")
    assert manifest.source.name == str(checkpoint)


def test_the_manifest_has_the_sizes_and_tokens_of_the_checkpoint(checkpoint, target) -> None:
    manifest, _ = export(checkpoint, target)
    sizes = manifest.sizes
    assert (sizes.layers, sizes.hidden_size, sizes.kv_heads, sizes.head_dim) == (2, 32, 2, 16)
    assert (sizes.vocabulary, sizes.max_length) == (300, 512)
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    assert (manifest.tokens.bos, manifest.tokens.eos) == (0, (1,))
    assert manifest.tokens.image == tokenizer.token_to_id("<image>")
    assert manifest.parameters == sum(info.size for info in _shards(checkpoint).values())


def _shards(folder: Path) -> dict[str, np.ndarray]:
    return {name: array for file in folder.glob("*.safetensors") for name, array in load_file(file).items()}


def test_one_file_and_many_shards_with_and_without_index_give_the_same_bytes(tmp_path, checkpoint, target) -> None:
    sharded = write_random_checkpoint(tmp_path / "sharded", TINY, shards=5)
    single = tmp_path / "single"
    shutil.copytree(checkpoint, single)
    (single / WEIGHTS).rename(single / "model.safetensors")
    (single / "model.safetensors.index.json").unlink()
    export(checkpoint, target)
    for other in (sharded, single):
        export(other, target.with_name(other.name))
        assert graph_bytes(target.with_name(other.name)) == graph_bytes(target)


def test_damage_is_found_by_size_when_loading_and_by_hash_when_verifying(checkpoint, target) -> None:
    export(checkpoint, target)
    data = target / "decoder.onnx.data"
    content = bytearray(data.read_bytes())
    content[-1] ^= 1
    data.write_bytes(content)
    with pytest.raises(ManifestError, match=r"decoder\.onnx\.data"):
        Manifest.load(target).verify(target)
    data.write_bytes(content[:-1])
    with pytest.raises(ManifestError, match=r"decoder\.onnx\.data"):
        Manifest.load(target)
