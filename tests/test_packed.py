"""Packed splits: what is written is read back, whatever the shards, and damage is said in a line."""

import json
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from petals import packed
from petals.errors import PetalsError
from petals.packed import OPEN_FILES, PackedSplit, Shards, create_shards, rewrite, write_labels

SIZE, COUNT = 8, 11
FEW = 100  # files to open, for 110 shards
ROW = SIZE * SIZE * 3
IMAGES = np.random.default_rng(1).integers(0, 256, (COUNT, SIZE, SIZE, 3), dtype=np.uint8)
LABELS = [n % 3 for n in range(COUNT)]


@pytest.fixture(params=[1, 4 * ROW, 5 * ROW + 1, 2**20], ids=["1 a shard", "4 a shard", "5 a shard", "all in one"])
def folder(request, tmp_path: Path, make_split: Callable[..., Path]) -> Path:
    return make_split(tmp_path / "train", IMAGES, LABELS, classes="abc", shard_bytes=request.param)


@pytest.fixture
def sound(tmp_path: Path, make_split: Callable[..., Path]) -> Path:
    return make_split(tmp_path / "train", IMAGES, LABELS, classes="abc", shard_bytes=4 * ROW)


def test_the_files_of_a_split(sound: Path):
    shapes = [np.load(path).shape for path in sorted(sound.glob("images-*.npy"))]
    assert shapes == [(4, SIZE, SIZE, 3), (4, SIZE, SIZE, 3), (3, SIZE, SIZE, 3)]
    assert {path.name for path in sound.iterdir()} == {
        *(f"images-{n:05d}.npy" for n in range(3)),
        *("labels.npy", "ids.json", "meta.json"),
    }
    labels = np.load(sound / "labels.npy")
    assert labels.dtype == np.int64 and labels.tolist() == LABELS
    meta = json.loads((sound / "meta.json").read_text())
    assert meta == {"classes": ["a", "b", "c"], "image_size": SIZE, "split": "train", "count": COUNT}


def test_read_copies_the_rows_that_are_asked_for(folder: Path):
    split = PackedSplit(folder)
    assert len(split) == len(split.images) == COUNT
    for rows in ([], [0], [10, 0, 10], [3, 4, 5], np.random.default_rng(0).permutation(COUNT)):
        found = split.images.read(rows)
        assert found.dtype == np.uint8
        assert np.array_equal(found, IMAGES[np.asarray(rows, int)])
    found[:] = 0
    assert np.array_equal(split.images.read(range(COUNT)), IMAGES)


@pytest.fixture
def few_files() -> Iterator[int]:
    """Lets this process open few files, at first; the most that it may ask for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (FEW, hard))
    yield hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_more_shards_than_a_system_allows_at_first_are_opened(tmp_path, make_split, few_files):
    folder = make_split(tmp_path / "many", np.repeat(IMAGES, 10, axis=0), LABELS * 10, classes="abc", shard_bytes=1)
    assert np.array_equal(PackedSplit(folder).images.read([0, 109]), IMAGES[[0, 10]])
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == min(OPEN_FILES, few_files)


def test_more_shards_than_a_system_allows_at_all_are_not_called_damaged(tmp_path, make_split, few_files, monkeypatch):
    folder = make_split(tmp_path / "many", np.repeat(IMAGES, 10, axis=0), LABELS * 10, classes="abc", shard_bytes=1)
    resource.setrlimit(resource.RLIMIT_NOFILE, (FEW, few_files))
    monkeypatch.setattr(packed, "allow_open_files", lambda: None)
    with pytest.raises(PetalsError, match="more files than a process may open; raise ulimit -n"):
        PackedSplit(folder)


@pytest.mark.parametrize("size", [1, 3, COUNT, 50])
def test_batches_give_all_images_in_order(folder: Path, size: int):
    batches = list(PackedSplit(folder).batches(size))
    assert all(len(batch) == size for batch in batches[:-1])
    assert np.array_equal(np.concatenate(batches), IMAGES)


@pytest.mark.parametrize(("image_size", "expected"), [(64, 196), (224, 16), (512, 3), (2048, 1)])
def test_as_many_images_at_once_as_have_so_many_pixels(tmp_path: Path, image_size: int, expected: int):
    create_shards(tmp_path, 0, image_size)
    write_labels(tmp_path, [], [], classes=[], image_size=image_size)
    assert PackedSplit(tmp_path).at_once == expected


@pytest.mark.parametrize("start", range(COUNT))
def test_write_goes_across_shards(tmp_path: Path, start: int):
    create_shards(tmp_path, COUNT, SIZE, shard_bytes=3 * ROW)
    Shards(tmp_path, mode="r+").write(start, IMAGES[start:])
    expected = IMAGES.copy()
    expected[:start] = 0
    assert np.array_equal(Shards(tmp_path).read(range(COUNT)), expected)


def test_an_empty_split_gives_no_batch(tmp_path: Path, make_split: Callable[..., Path]):
    split = PackedSplit(make_split(tmp_path / "test", IMAGES[:0], []))
    assert len(split) == 0 and list(split.batches(4)) == []


@pytest.mark.parametrize("rows", [[], [0, 10], [2, 3, 4, 5], list(range(COUNT))])
def test_rewriting_leaves_what_packing_them_alone_gives(folder: Path, rows: list[int]):
    before = json.loads((folder / "meta.json").read_text())
    rewrite(folder, [(PackedSplit(folder), np.array(rows, int))])
    split = PackedSplit(folder)
    assert split.labels.tolist() == [LABELS[row] for row in rows]
    assert split.ids == [f"train-{row}" for row in rows]
    if rows:
        assert np.array_equal(split.images.read(range(len(rows))), IMAGES[rows])
    assert json.loads((folder / "meta.json").read_text()) == {**before, "count": len(rows)}
    assert all(path.is_file() and not path.name.startswith(".") for path in folder.iterdir())


def test_rewriting_more_than_are_read_at_once(tmp_path: Path, make_split):
    many = np.random.default_rng(1).integers(0, 256, (600, 4, 4, 3), dtype=np.uint8)
    folder = make_split(tmp_path / "many", many, [0, 1] * 300)
    rewrite(folder, [(PackedSplit(folder), np.arange(0, 600, 2))])
    assert np.array_equal(PackedSplit(folder).images.read(range(300)), many[::2])


@pytest.mark.parametrize("more", [0, 1, 7])
def test_two_splits_become_what_packing_both_together_gives(folder: Path, make_split: Callable[..., Path], more: int):
    before = json.loads((folder / "meta.json").read_text())
    other = make_split(folder.with_name("val"), 255 - IMAGES[:more], LABELS[:more], classes="abc")
    kept = {path.name: path.read_bytes() for path in other.iterdir()}
    assert not PackedSplit(folder).final
    both = [(PackedSplit(folder), np.arange(COUNT)), (PackedSplit(other), np.arange(more))]
    rewrite(folder, both, final=True)
    split = PackedSplit(folder)
    assert split.final and split.labels.tolist() == LABELS + LABELS[:more]
    assert split.ids == [f"train-{n}" for n in range(COUNT)] + [f"val-{n}" for n in range(more)]
    assert np.array_equal(split.images.read(range(COUNT + more)), np.concatenate([IMAGES, 255 - IMAGES[:more]]))
    assert json.loads((folder / "meta.json").read_text()) == {**before, "final": True, "count": COUNT + more}
    assert {path.name: path.read_bytes() for path in other.iterdir()} == kept
    assert all(path.is_file() and not path.name.startswith(".") for path in folder.iterdir())


def fault(folder: Path) -> str:
    with pytest.raises(PetalsError) as error:
        PackedSplit(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", ["meta.json", "ids.json", "labels.npy"])
def test_a_missing_file(sound: Path, name: str):
    (sound / name).unlink()
    assert fault(sound) == f"{sound / name}: not found; run dvc repro prepare, or dvc pull"


@pytest.mark.parametrize("content", [b"", b"[1", b"[]", b"7", b"{}", b"\xff\xfe", b"null"])
@pytest.mark.parametrize("name", ["meta.json", "labels.npy"])
def test_a_broken_file(sound: Path, name: str, content: bytes):
    (sound / name).write_bytes(content)
    assert fault(sound).startswith(f"{sound}: not a packed split (")


def test_images_without_a_size(sound: Path):
    meta = json.loads((sound / "meta.json").read_text())
    (sound / "meta.json").write_text(json.dumps(meta | {"image_size": 0}))
    assert fault(sound).startswith(f"{sound}: not a packed split (")


@pytest.mark.parametrize("keep", [0, 7, 100, 200])
def test_images_cut_short(sound: Path, keep: int):
    path = sound / "images-00001.npy"
    path.write_bytes(path.read_bytes()[:keep])
    assert fault(sound).startswith(f"{sound}: damaged images (")


def test_files_that_disagree(sound: Path):
    (sound / "images-00002.npy").unlink()
    assert "disagree on the number of images" in fault(sound)


def test_a_model_of_other_classes_or_another_size_is_refused(sound: Path):
    split = PackedSplit(sound)
    split.check("m.safetensors", ["a", "b", "c"], SIZE)
    with pytest.raises(PetalsError, match=r"^m.safetensors: its classes are not those of .*train; run dvc repro"):
        split.check("m.safetensors", ["a", "c", "b"], SIZE)
    with pytest.raises(PetalsError, match=r"^m.safetensors: made for 9 px, .* is 8; run dvc repro"):
        split.check("m.safetensors", ["a", "b", "c"], SIZE + 1)


def test_a_full_disk_is_known_before_any_image_is_written(on_small_disk):
    code = "from pathlib import Path; from petals.packed import create_shards; create_shards(Path(), 100, 64)"
    done = on_small_disk("-c", code)
    assert done.returncode == 1 and "OSError: [Errno 28]" in done.stderr


def test_labels_on_a_full_disk(on_small_disk):
    code = "from pathlib import Path; from petals.packed import write_labels; write_labels(Path(), range(9**5), [])"
    done = on_small_disk("-c", code)
    assert done.returncode == 1 and "OSError: [Errno 28]" in done.stderr


def test_an_id_too_few_is_damage(sound: Path):
    ids = json.loads((sound / "ids.json").read_text())
    (sound / "ids.json").write_text(json.dumps(ids[:-1]))
    with pytest.raises(PetalsError, match="disagree on the number of images"):
        PackedSplit(sound)
