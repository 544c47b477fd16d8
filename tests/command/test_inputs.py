"""Inputs become documents, and no two documents ever share a name."""

from __future__ import annotations

import hashlib
import io
import os
import socket
import threading
from pathlib import Path, PurePath

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from models.model_errors import InvalidInput
from runtime.documents import How, Workers
from server.command.command_errors import UsageError
from server.command.inputs import find_sources, output_names
from server.command.source import DocumentSource
from tests.command.conftest import page_of


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in (
        "in/page10.png", "in/page2.png", "in/notes.txt", "in/.hidden.pdf", "in/.git/x.pdf", "in/sub/A.PDF",
        "in/sub/deep/b.tiff", "in/out/page2.md", "in/out/images/page2-p1-0.jpg", "other/page2.png", "other/odd.xyz",
    ):  # fmt: skip
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(tree: Path, *inputs: str, out: str | None = None) -> list[str]:
    found = find_sources(inputs, tree / out if out else None, lambda: b"")
    return [os.path.relpath(source.name, tree) for source in found]


def test_a_folder_is_walked_in_the_order_of_its_numbers_without_hidden_files_and_the_output(tree: Path) -> None:
    expected = ["in/page2.png", "in/page10.png", "in/out/images/page2-p1-0.jpg", "in/sub/A.PDF", "in/sub/deep/b.tiff"]
    assert names(tree, "in") == expected
    assert names(tree, "in", out="in/out") == [name for name in expected if not name.startswith("in/out")]


def test_a_file_that_is_named_may_have_any_ending_and_counts_once(tree: Path) -> None:
    assert names(tree, "other/odd.xyz", "./other/odd.xyz", "other") == ["other/odd.xyz", "other/page2.png"]


def test_patterns_are_expanded_here_where_the_shell_did_not(tree: Path) -> None:
    assert names(tree, "in/**/*.[Pp][Dd][Ff]") == ["in/sub/A.PDF"]
    assert names(tree, "*/page?.png") == ["in/page2.png", "other/page2.png"]
    assert names(tree, "ot*") == ["other/page2.png"]
    (tree / "in" / "[1].png").write_bytes(b"x")
    assert names(tree, "in/[1].png") == ["in/[1].png"]  # a file of that very name


def test_patterns_find_documents_whatever_folder_the_results_go_to(tree: Path) -> None:
    assert names(tree, "in/*.png", out=".") == ["in/page2.png", "in/page10.png"]
    assert names(tree, "in/*.png", out="in") == ["in/page2.png", "in/page10.png"]
    assert names(tree, "in/[os]*", out="in/out") == ["in/sub/A.PDF", "in/sub/deep/b.tiff"]
    assert names(tree, "*", out="in/out") == [
        "in/page2.png", "in/page10.png", "in/sub/A.PDF", "in/sub/deep/b.tiff", "other/page2.png",
    ]  # fmt: skip


def test_standard_input_is_a_document(tree: Path) -> None:
    (source,) = find_sources(["-"], None, lambda: b"data")
    assert (source.path, source.data, source.name) == (None, b"data", "-")
    assert output_names([source], {}) == ["stdin"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such pipes")
def test_a_pipe_is_read_once_and_is_a_document(tree: Path) -> None:
    pipe = tree / "pipe"  # as the shell's <(command)
    os.mkfifo(pipe)
    buffer = io.BytesIO()
    page_of(1, (5, 4)).save(buffer, "PNG")
    page = buffer.getvalue()
    writer = threading.Thread(target=pipe.write_bytes, args=(page,))
    writer.start()
    (source,) = find_sources([str(pipe)], None, lambda: b"")
    writer.join()
    assert (source.path, source.data) == (pipe, page)
    assert source.fingerprint == source.fingerprint
    with Workers(1) as workers:
        with source.open(How(max_pixels=1000), workers, lambda: False) as document:
            assert document.page(0).size == (5, 4)
        with pytest.raises(InvalidInput, match=f"{pipe} has 5 x 4 pixels"):
            source.open(How(max_pixels=1), workers, lambda: False).page(0)


@pytest.mark.parametrize(
    ("given_input", "out", "words"),
    [
        ("nowhere.pdf", None, "nowhere.pdf: there is no such file or folder"),
        ("in/*.docx", None, "nothing matches this pattern"),
        ("empty", None, "no document here; documents end in .pdf"),
        ("in", "in", "is the input folder itself; name another one"),
    ],
)
def test_inputs_that_name_nothing_are_explained(tree: Path, given_input: str, out: str | None, words: str) -> None:
    (tree / "empty").mkdir()
    with pytest.raises(UsageError) as caught:
        names(tree, given_input, out=out)
    assert words in str(caught.value)


def test_names_follow_the_folders_below_the_input(tree: Path) -> None:
    found = find_sources(["in"], tree / "in/out", lambda: b"")
    assert output_names(found, {}) == ["page2", "page10", "sub/A", "sub/deep/b"]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["a/x.pdf", "b/y.png"], ["x", "y"]),
        (["a/x.pdf", "a/x.png"], ["x.pdf", "x.png"]),
        (["a/x.pdf", "b/x.png"], ["x.pdf", "x.png"]),
        (["a/x.pdf", "b/x.pdf"], ["a/x.pdf", "b/x.pdf"]),
        (["a/x.pdf", "b/x.pdf", "a/x.png", "a/z.png"], ["a/x.pdf", "b/x.pdf", "x.png", "z"]),
        (["a/X.pdf", "b/x.PDF"], ["a/X.pdf", "b/x.PDF"]),
        (["a/" + "n" * 250 + ".pdf"], ["n" * 200 + "-" + hashlib.sha256(b"n" * 250).hexdigest()[:8]]),
    ],
)
def test_names_that_collide_are_told_apart(files: list[str], expected: list[str]) -> None:
    sources = [
        DocumentSource(Path("/root") / file, PurePath(file).relative_to(PurePath(file).parent)) for file in files
    ]
    assert output_names(sources, {}) == expected


def test_names_of_an_earlier_run_stay_when_documents_are_added() -> None:
    old = DocumentSource(Path("/in/x.pdf"), PurePath("x.pdf"))
    new = DocumentSource(Path("/in/x.png"), PurePath("x.png"))
    assert output_names([old, new], {old.name: "x"}) == ["x", "x.png"]
    assert output_names([new], {old.name: "x"}) == ["x.png"]
    third = DocumentSource(Path("/other/x.png"), PurePath("x.png"))
    (name,) = output_names([third], {old.name: "x", new.name: "x.png", "/elsewhere": "/other/x.png"[1:]})
    assert name not in ("x", "x.png", "other/x.png")


def test_a_result_never_stands_where_another_document_needs_a_folder() -> None:
    plain = DocumentSource(Path("/in/r.png"), PurePath("r.png"))
    below = DocumentSource(Path("/in/R.md/x.png"), PurePath("R.md/x.png"))
    assert output_names([plain, below], {}) == ["r.png", "R.md/x"]
    assert output_names([plain, below], {below.name: "R.md/x"}) == ["r.png", "R.md/x"]
    (name,) = output_names([below], {plain.name: "r"})  # r.md is there by now
    assert "/" not in name


_PART = st.sampled_from(
    ["a", "A", "b", "x.pdf", "X.pdf", "x.png", "x", "x.pdf.png", "é", "x.md", "x.pdf.md", "é" * 120]
)


@given(st.lists(st.lists(_PART, min_size=1, max_size=4), min_size=1, max_size=12), st.data())
def test_no_two_documents_ever_share_a_name(paths: list[list[str]], data: st.DataObject) -> None:
    files = list(dict.fromkeys(Path("/root", *parts) for parts in paths))
    sources = [
        DocumentSource(file, file.relative_to(file.parents[data.draw(st.integers(0, len(file.parents) - 2))]))
        for file in files
    ]
    given_names = output_names(sources, {})
    assert len({name.lower() for name in given_names}) == len(sources)
    assert output_names(sources, {}) == given_names
    results = {f"{name.lower()}.md" for name in given_names}
    assert results.isdisjoint(str(folder).lower() for name in given_names for folder in PurePath(name).parents)
    assert all(len(part.encode()) <= 220 for name in given_names for part in name.split("/"))
    part = data.draw(st.integers(0, len(sources)))
    earlier = {source.name: name for source, name in zip(sources[:part], output_names(sources[:part], {}), strict=True)}
    later = output_names(sources, earlier)
    assert later[:part] == list(earlier.values())
    assert len({name.lower() for name in later}) == len(sources)


@pytest.mark.skipif(not hasattr(os, "symlink") or os.name == "nt", reason="needs symbolic links")
def test_linked_folders_are_looked_into_once_or_not_at_all(tree: Path) -> None:
    (tree / "in/real").mkdir(parents=True)
    (tree / "elsewhere").mkdir()
    for name in ("in/real/a.png", "elsewhere/b.png"):
        page_of(1).save(tree / name)
    (tree / "in/again").symlink_to(tree / "in/real", target_is_directory=True)
    (tree / "in/loop").symlink_to(tree / "in", target_is_directory=True)
    (tree / "in/other").symlink_to(tree / "elsewhere", target_is_directory=True)

    def names(*, follow: bool) -> list[str]:
        found = find_sources(["in"], None, lambda: b"", follow=follow)
        return [str(source.relative) for source in found if source.path is not None]

    new = {"again/a.png", "real/a.png", "other/b.png"}
    followed = [name for name in names(follow=True) if name in new]
    assert followed == ["again/a.png", "other/b.png"]  # the first of the two names of one folder
    assert [name for name in names(follow=False) if name in new] == ["real/a.png"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_what_is_no_file_in_a_folder_is_named_and_left(tree: Path) -> None:
    (tree / "odd").mkdir()
    os.mkfifo(tree / "odd/pipe.pdf")
    page_of(1).save(tree / "odd/a.jfif", "JPEG")
    page_of(1).save(tree / "odd/b.jp2")
    page_of(1).save(tree / "odd/c.jpe", "JPEG")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tree / "odd/socket.png"))
        said: list[str] = []
        found = find_sources(["odd"], None, lambda: b"", tell=said.append)
    assert [str(source.relative) for source in found] == ["a.jfif", "b.jp2", "c.jpe"]
    assert said == [
        f"left: {tree / 'odd/pipe.pdf'} is a pipe; name it itself to read it",
        f"left: {tree / 'odd/socket.png'} is a socket; name it itself to read it",
    ]


@pytest.mark.parametrize(
    ("form", "one"), [("PNG", True), ("JPEG2000", True), ("QOI", True), ("TIFF", False), ("PPM", False)]
)
def test_a_picture_whose_first_bytes_say_that_it_is_one_page_is_not_opened_for_it(
    tmp_path: Path, form: str, one: bool
) -> None:
    Image.new("RGB", (30, 20)).save(tmp_path / "a", form)
    assert DocumentSource(tmp_path / "a", PurePath("a")).is_one_page() is one
