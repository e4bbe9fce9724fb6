"""Outputs that appear whole or not at all."""

import os
import shutil
from pathlib import Path

import pytest

from petals.files import remove, replacing, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_takes_its_place_when_it_is_whole(tmp_path: Path):
    path = tmp_path / "deep" / "er" / "out.txt"
    with replacing(path) as partial:
        partial.write_text("half")
        assert not path.exists() and partial.parent == path.parent and partial.name.startswith(".")
        partial.write_text("whole")
    assert path.read_text() == "whole" and names(path.parent) == ["out.txt"]


def test_a_folder_takes_the_place_of_a_folder(tmp_path: Path):
    path = tmp_path / "out"
    for content in ("old", "new"):
        with replacing(str(path)) as partial:
            partial.mkdir()
            (partial / content).write_text(content)
    assert names(path) == ["new"] and names(tmp_path) == ["out"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("folder", [False, True])
def test_an_error_leaves_what_was_there(tmp_path: Path, error: type[BaseException], folder: bool):
    path = tmp_path / "out"
    write_text(path, "old")
    with pytest.raises(error), replacing(path) as partial:
        if folder:
            partial.mkdir()
            partial /= "within"
        partial.write_text("half")
        raise error
    assert path.read_text() == "old" and names(tmp_path) == ["out"]


@pytest.mark.parametrize("fails", ["replace", "remove"])
def test_a_folder_is_there_whole_whenever_it_is_interrupted(tmp_path: Path, monkeypatch, fails: str):
    """While the new one is moved to its place, and while the old one is deleted, in many steps."""
    path = tmp_path / "out"
    write_text(path / "old", "")

    def interrupted(*given: Path) -> None:
        if not path.exists() or fails == "remove":
            monkeypatch.undo()
            raise KeyboardInterrupt
        os.rename(*given)

    with pytest.raises(KeyboardInterrupt), replacing(path) as partial:
        write_text(partial / "new", "")
        monkeypatch.setattr(*{"replace": (os, "replace"), "remove": (shutil, "rmtree")}[fails], interrupted)
    assert names(path) == [{"replace": "old", "remove": "new"}[fails]]
    with replacing(path) as partial:
        partial.mkdir()
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("again", [False, True])
def test_a_folder_that_a_kill_left_moved_aside_comes_back(tmp_path: Path, again: bool):
    path = tmp_path / "out"
    write_text(tmp_path / ".out.former" / "old", "")
    if again:  # the new one was in its place, and the former not yet deleted
        write_text(path / "new", "")
    with pytest.raises(ValueError), replacing(path) as partial:
        write_text(partial / "newer", "")
        raise ValueError
    assert names(tmp_path) == ["out"] and names(path) == ["new" if again else "old"]


@pytest.mark.parametrize("name", ["out", "folder/out"])
def test_nothing_written_is_an_error_and_leaves_what_was_there(tmp_path: Path, name: str):
    write_text(tmp_path / name, "old")
    path = tmp_path / name.split("/")[0]
    with pytest.raises(FileNotFoundError), replacing(path):
        pass
    assert (tmp_path / name).read_text() == "old"


def test_a_file_and_a_folder_may_take_each_others_place(tmp_path: Path):
    write_text(tmp_path / "out", "a file")
    with replacing(tmp_path / "out") as partial:
        partial.mkdir()
    assert (tmp_path / "out").is_dir()
    write_text(tmp_path / "out", "a file")
    assert names(tmp_path) == ["out"] and (tmp_path / "out").is_file()


def test_the_leftover_of_a_killed_process_is_cleared(tmp_path: Path):
    with replacing(tmp_path / "out") as partial:
        pass_on = partial
        partial.write_text("x")
    pass_on.mkdir()
    (pass_on / "left").write_text("over")
    with replacing(tmp_path / "out") as partial:
        assert not partial.exists()
        partial.write_text("new")
    assert names(tmp_path) == ["out"]


def test_a_link_is_replaced_and_what_it_points_to_stays(tmp_path: Path):
    """DVC may link an output to its cache, which must not change."""
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "kept").write_text("kept")
    link = tmp_path / "out"
    link.symlink_to(cache, target_is_directory=True)
    with replacing(link) as partial:
        partial.mkdir()
    assert not link.is_symlink() and names(link) == [] and names(cache) == ["kept"]
    link.rmdir()
    link.symlink_to(cache)
    remove(link)
    assert not link.is_symlink() and names(cache) == ["kept"]


def test_remove(tmp_path: Path):
    (tmp_path / "folder" / "in").mkdir(parents=True)
    (tmp_path / "file").write_text("")
    for name in ("folder", "file", "absent"):
        remove(tmp_path / name)
    assert names(tmp_path) == []


def test_text_is_utf_8_with_unix_line_ends(tmp_path: Path):
    write_text(tmp_path / "out.txt", "é\n→\n")
    assert (tmp_path / "out.txt").read_bytes() == "é\n→\n".encode()
