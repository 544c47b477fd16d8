"""Fetching checkpoints from the hub, its mirror and the cache, see ``hub_runner``."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from export import download
from export.export_errors import ExportError
from tests.export.fake_hubs import COMMIT, OLD_COMMIT, FakeHubs, sha256
from tests.export.hub_runner import FILES, OLD_WEIGHTS, SHARD, WANTED, WEIGHTS, Runner, assert_whole, wait_until


@pytest.fixture
def hubs() -> Iterator[FakeHubs]:
    with FakeHubs(revisions={COMMIT: FILES, OLD_COMMIT: FILES | {SHARD: OLD_WEIGHTS}}) as server:
        yield server


@pytest.fixture
def fetch(hubs: FakeHubs, tmp_path: Path) -> Runner:
    return Runner(hubs, tmp_path)


# Directories and names


def test_a_directory_is_used_as_it_is(fetch: Runner, tmp_path: Path) -> None:
    folder = tmp_path / "owner" / "model"
    folder.mkdir(parents=True)
    answer = fetch(str(folder))
    assert answer == {"folder": str(folder), "name": str(folder), "revision": None, "origin": "directory", "said": []}
    assert not fetch.hubs.asked


@pytest.mark.parametrize("source", ["./nowhere", "/no/such/folder", "~/no such folder", "../nowhere"])
def test_a_missing_directory_is_named(fetch: Runner, source: str) -> None:
    assert f"{Path(source).expanduser()} is no directory" in fetch(source)["error"]
    assert not fetch.hubs.asked


@pytest.mark.parametrize("source", ["ocr", "a/b/c", "acme/", "acme/o cr", "acme/..", "a--b/c", "https://hub/acme/ocr"])
def test_what_is_neither_directory_nor_hub_id_is_refused(fetch: Runner, source: str) -> None:
    answer = fetch(source)
    assert "neither a directory nor a hub id" in answer["error"]
    assert repr(source) in answer["error"]
    assert not fetch.hubs.asked


# The Hugging Face hub


def test_a_hub_id_is_downloaded_into_the_hubs_cache_with_only_the_wanted_files(fetch: Runner) -> None:
    answer = fetch()
    assert_whole(answer)
    assert (answer["name"], answer["revision"], answer["origin"]) == ("acme/ocr", COMMIT, "huggingface")
    assert Path(answer["folder"]).is_relative_to(fetch.home / "hf" / "hub")
    assert "download: 100%" in fetch.stderr  # the progress bar

    bodies = len(fetch.hubs.bodies(SHARD))
    assert_whole(fetch())  # again: nothing is fetched twice
    assert len(fetch.hubs.bodies(SHARD)) == bodies


def test_a_pinned_revision_is_fetched_and_shares_unchanged_files(fetch: Runner) -> None:
    assert_whole(fetch())
    answer = fetch(revision=OLD_COMMIT)
    assert_whole(answer, FILES | {SHARD: OLD_WEIGHTS})
    assert answer["revision"] == OLD_COMMIT
    assert len(fetch.hubs.bodies("tokenizer.json")) == 1


def test_a_branch_that_moved_is_fetched_anew(fetch: Runner) -> None:
    fetch.hubs.branches["main"] = OLD_COMMIT
    assert fetch()["revision"] == OLD_COMMIT
    fetch.hubs.branches["main"] = COMMIT
    assert fetch()["revision"] == COMMIT


def test_the_token_goes_to_the_hub_and_not_to_where_it_redirects(fetch: Runner) -> None:
    fetch.hubs.token = "hf_secret"
    assert_whole(fetch(HF_TOKEN="hf_secret"))
    on_cdn = [asked for asked in fetch.hubs.asked if asked.on_cdn]
    assert on_cdn
    assert not any("authorization" in asked.headers for asked in on_cdn)


@pytest.mark.parametrize(
    ("gated", "token", "remedy"),
    [
        (False, None, "no access token is set (HF_TOKEN)"),
        (False, "hf_wrong", "the access token (HF_TOKEN) does not help"),
        (True, None, "accept the model's terms"),
        (True, "hf_wrong", "accept the model's terms"),
    ],
)
def test_a_refusal_says_what_to_do_and_is_not_taken_elsewhere(
    fetch: Runner, gated: bool, token: str | None, remedy: str
) -> None:
    fetch.hubs.token, fetch.hubs.gated = "hf_secret", gated
    answer = fetch(**({"HF_TOKEN": token} if token else {}))
    assert remedy in answer["error"]
    assert "acme/ocr" in answer["error"]
    assert not any("/api/v1/" in asked.path for asked in fetch.hubs.asked)


def test_an_unknown_model_and_an_unknown_revision_are_named(fetch: Runner) -> None:
    assert "knows no model 'acme/orc'" in fetch("acme/orc")["error"]
    assert "has no revision 'v9'" in fetch(revision="v9")["error"]


def test_a_repository_without_safetensors_is_refused_before_the_download(fetch: Runner) -> None:
    fetch.hubs.revisions[COMMIT] = {"config.json": b"{}", "pytorch_model.bin": b"old"}
    assert "no safetensors files" in fetch()["error"]
    assert not fetch.hubs.bodies("config.json")


# Interrupted and damaged downloads


def test_a_dropped_connection_is_resumed_within_the_run(fetch: Runner) -> None:
    fetch.hubs.cut_after, fetch.hubs.cuts = 1_500_000, 2
    assert_whole(fetch())
    starts = [asked.range_start for asked in fetch.hubs.bodies(SHARD) if asked.on_cdn]
    assert starts == [0, 1_500_000, 3_000_000]


def test_a_killed_download_is_resumed_by_the_next_run(fetch: Runner) -> None:
    fetch.hubs.stall_after = 2_000_000
    partial = fetch.blob(sha256(WEIGHTS) + ".incomplete")
    process = fetch.start()
    wait_until(lambda: partial.exists() and partial.stat().st_size == 2_000_000)
    process.kill()
    process.communicate()
    assert not fetch.blob(sha256(WEIGHTS)).exists()

    fetch.hubs.released.set()
    fetch.hubs.stall_after = None
    answer = fetch()
    assert_whole(answer)
    assert [asked.range_start for asked in fetch.hubs.bodies(SHARD) if asked.on_cdn] == [0, 2_000_000]
    assert f"{SHARD}: 5.0 MB, the first 2.0 MB are here" in answer["said"]


def test_a_damaged_body_is_fetched_once_more(fetch: Runner) -> None:
    fetch.hubs.damage = 1
    answer = fetch()
    assert_whole(answer)
    assert any("arrived damaged" in line and sha256(WEIGHTS) in line for line in answer["said"])


def test_a_body_that_goes_on_beyond_its_announced_size_is_not_taken_to_its_end(fetch: Runner) -> None:
    fetch.hubs.surplus = 60_000_000
    answer = fetch()
    assert f"{SHARD} arrived damaged twice: " in answer["error"]
    assert fetch.hubs.hung_up == 2
    assert not list(fetch.blob("x").parent.glob(f"{sha256(WEIGHTS)}*"))


def test_a_body_damaged_twice_is_an_error_and_leaves_nothing_behind(fetch: Runner) -> None:
    fetch.hubs.damage = 2
    answer = fetch()
    assert f"{SHARD} arrived damaged twice: expected hash {sha256(WEIGHTS)}, found " in answer["error"]
    assert not list(fetch.blob("x").parent.glob(f"{sha256(WEIGHTS)}*"))
    assert_whole(fetch())


def test_a_file_damaged_in_the_cache_is_fetched_again(fetch: Runner) -> None:
    fetch()
    blob = fetch.blob(sha256(WEIGHTS))
    blob.write_bytes(WEIGHTS[:-1])
    answer = fetch()
    assert_whole(answer)
    assert any("in the cache is damaged (expected 5000000 bytes, found 4999999)" in line for line in answer["said"])


@pytest.mark.parametrize(
    "path", ["../model.safetensors", "..\\model.safetensors", "C:model.safetensors", "/model.safetensors", "model.bin"]
)
def test_names_that_could_leave_the_folder_are_not_wanted(path: str) -> None:
    assert not download.wanted(path)


@pytest.mark.parametrize("digest", ["", "../../../etc/x", "0" * 39, "G" * 64])
def test_a_listing_whose_hashes_are_none_is_not_believed(digest: str) -> None:
    with pytest.raises(ValueError, match="no usable entry"):
        download.RemoteFile("config.json", "http://127.0.0.1/config.json", 2, digest)


def test_a_cache_that_cannot_be_written_is_named(fetch: Runner) -> None:
    blobs = fetch.blob("x").parent
    blobs.parent.mkdir(parents=True)
    blobs.write_text("in the way")
    error = fetch()["error"]
    assert str(blobs) in error
    assert "cannot be written" in error


def test_too_little_disk_is_said_with_both_numbers(hubs: FakeHubs, tmp_path: Path) -> None:
    file = download.RemoteFile(SHARD, f"{hubs.url}/models/acme/ocr/resolve/{COMMIT}/{SHARD}", 10**18, "0" * 64)
    with pytest.raises(ExportError, match=r"needs 1000000000\.00 GB in .*, where \d+\.\d\d GB are free"):
        download.download([(file, tmp_path / "x" / "file")], lock=tmp_path / "lock", headers={}, report=print)
    assert not hubs.asked


def test_two_processes_download_once(fetch: Runner) -> None:
    first, second = fetch.start(), fetch.start()
    answers = [json.loads(process.communicate(timeout=120)[0]) for process in (first, second)]
    for answer in answers:
        assert_whole(answer)
    assert len([asked for asked in fetch.hubs.bodies(SHARD) if asked.on_cdn]) == 1


# ModelScope


def test_modelscope_is_asked_when_the_hub_is_out_of_order(fetch: Runner) -> None:
    fetch.hubs.status = 503
    answer = fetch()
    assert_whole(answer)
    assert (answer["name"], answer["revision"], answer["origin"]) == ("acme/ocr", COMMIT, "modelscope")
    assert Path(answer["folder"]).is_relative_to(fetch.home / "cache")
    assert any("answered 503" in line for line in answer["said"])


def test_modelscope_is_asked_when_nobody_listens_at_the_hubs_address(fetch: Runner) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        answer = fetch(HF_ENDPOINT=f"http://127.0.0.1:{unused.getsockname()[1]}")
    assert_whole(answer)
    assert answer["origin"] == "modelscope"


def test_modelscope_is_asked_when_something_else_answers_for_the_hub(fetch: Runner) -> None:
    fetch.hubs.status = 200  # a login page of the network, say
    assert fetch()["origin"] == "modelscope"


def test_modelscope_downloads_are_resumed_and_checked(fetch: Runner) -> None:
    fetch.hubs.status, fetch.hubs.cut_after = 500, 2_000_000
    fetch.hubs.cuts, fetch.hubs.damage = 1, 0
    assert_whole(fetch())
    assert [asked.range_start for asked in fetch.hubs.bodies(SHARD)] == [0, 2_000_000]

    fetch.hubs.revisions[COMMIT] = FILES | {SHARD: OLD_WEIGHTS}
    fetch.hubs.damage = 2
    assert "arrived damaged twice" in fetch()["error"]
    assert_whole(fetch(), FILES | {SHARD: OLD_WEIGHTS})


def test_an_unfinished_modelscope_download_is_resumed_by_the_next_run(fetch: Runner) -> None:
    fetch.hubs.status, fetch.hubs.stall_after = 500, 3_000_000
    partial = fetch.home / "cache" / "downloads" / "modelscope" / "acme" / "ocr" / "master" / f"{SHARD}.incomplete"
    process = fetch.start()
    wait_until(lambda: partial.exists() and partial.stat().st_size == 3_000_000)
    process.kill()
    process.communicate()
    assert "not in the local cache" in fetch(offline=True)["error"]

    fetch.hubs.released.set()
    fetch.hubs.stall_after = None
    assert_whole(fetch())
    assert [asked.range_start for asked in fetch.hubs.bodies(SHARD)] == [0, 3_000_000]


def test_modelscope_never_answers_for_a_revision_it_does_not_have(fetch: Runner) -> None:
    fetch.hubs.status = 503
    answer = fetch(revision="f" * 40)
    assert f"no safetensors files of acme/ocr at revision '{'f' * 40}'" in answer["error"]


def test_when_both_hubs_fail_the_error_has_both_reasons_and_the_remedies(fetch: Runner) -> None:
    fetch.hubs.status, fetch.hubs.modelscope_status = 502, 504
    error = fetch()["error"]
    assert "Hugging Face: " in error
    assert "answered 502" in error
    assert "ModelScope: " in error
    assert "answered 504" in error
    assert "HF_ENDPOINT" in error
    assert "--source" in error


# Without a network


@pytest.mark.parametrize("how", [{"offline": True}, {"HF_HUB_OFFLINE": "1"}])
def test_offline_uses_the_cache_and_asks_nobody(fetch: Runner, how: dict[str, Any]) -> None:
    error = fetch(**how)["error"]
    assert "acme/ocr is not in the local cache" in error
    assert "--offline" in error
    fetch()
    fetch.hubs.asked.clear()
    answer = fetch(**how)
    assert_whole(answer)
    assert answer["revision"] == COMMIT
    assert not fetch.hubs.asked


def test_offline_finds_what_came_from_modelscope(fetch: Runner) -> None:
    fetch.hubs.status = 503
    fetch()
    answer = fetch(offline=True)
    assert_whole(answer)
    assert (answer["origin"], answer["revision"]) == ("modelscope", COMMIT)


def test_with_both_hubs_away_an_earlier_copy_is_used(fetch: Runner) -> None:
    fetch.hubs.status = 503
    fetch()
    fetch.hubs.modelscope_status = 503
    answer = fetch()
    assert_whole(answer)
    assert (answer["origin"], answer["revision"]) == ("modelscope", COMMIT)


@pytest.mark.parametrize("name", ["special_tokens_map.json", "generation_config.json"])
def test_offline_a_cache_that_lacks_what_nobody_needs_is_whole(fetch: Runner, name: str) -> None:
    fetch.hubs.revisions[COMMIT] = FILES | {name: b"{}"}
    (Path(fetch()["folder"]) / name).unlink()
    assert_whole(fetch(offline=True))


@pytest.mark.parametrize(
    ("name", "pattern"),
    [("config.json", "config.json"), ("tokenizer.json", "tokenizer.json"), (SHARD, "*.safetensors*")],
)
def test_offline_a_needed_file_is_missed_unless_another_is_named_for_it(fetch: Runner, name: str, pattern: str) -> None:
    folder = Path(fetch()["folder"])
    (folder / name).unlink()
    assert "not in the local cache" in fetch(offline=True)["error"]
    assert fetch(offline=True, replaced=[pattern])["folder"] == str(folder)


def test_weights_that_the_user_has_are_not_downloaded(fetch: Runner) -> None:
    folder = Path(fetch(replaced=["*.safetensors*"])["folder"])
    assert {file.name for file in folder.iterdir()} == {"config.json", "tokenizer.json"}
    assert not fetch.hubs.bodies(SHARD)


@pytest.mark.parametrize("place", ["hub/models/acme/ocr-1___5", "models/acme/ocr-1.5", "hub/acme/ocr-1___5"])
def test_offline_finds_what_modelscopes_own_client_downloaded(fetch: Runner, place: str) -> None:
    folder = fetch.home / "ms" / place
    folder.mkdir(parents=True)
    for name in WANTED:
        (folder / name).write_bytes(FILES[name])
    where = {"offline": True, "MODELSCOPE_CACHE": str(fetch.home / "ms")}
    answer = fetch("acme/ocr-1.5", **where)
    assert (answer["folder"], answer["origin"]) == (str(folder), "modelscope")
    assert "not in the local cache" in fetch("acme/ocr-1.5", revision="v2", **where)["error"]
    (folder / SHARD).unlink()
    assert "not in the local cache" in fetch("acme/ocr-1.5", **where)["error"]


def test_offline_does_not_accept_damaged_files(fetch: Runner) -> None:
    fetch()
    fetch.blob(sha256(WEIGHTS)).write_bytes(WEIGHTS[:-1] + b"x")
    assert f"{SHARD} is damaged" in fetch(offline=True)["error"]


def test_a_blob_that_other_caches_share_is_accepted(fetch: Runner) -> None:
    fetch()
    blob, shared = fetch.blob(sha256(WEIGHTS)), fetch.home / ("f" * 64)  # the hub names shared blobs by another hash
    blob.rename(shared)
    blob.symlink_to(shared)
    assert_whole(fetch(offline=True))
    assert_whole(fetch())


def test_a_hub_that_went_away_leaves_the_cached_files_in_use(fetch: Runner) -> None:
    fetch()
    fetch.hubs.status = 503
    answer = fetch()
    assert_whole(answer)
    assert answer["origin"] == "huggingface"
    assert any("downloaded earlier" in line for line in answer["said"])
