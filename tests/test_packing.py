"""From raw records to a packed split: the same bytes for any number of workers, the first fault in a line."""

import hashlib
import io
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import petals.packed
import petals.packing
from petals.duplicates import thumbnails
from petals.errors import PetalsError
from petals.images import decode, square
from petals.packed import PackedSplit
from petals.packing import Packed, pack, pack_part
from petals.parallel import in_order
from petals.parts import Part, parts_of
from petals.rawdata import Dataset, open_dataset
from petals.resizing import bicubic
from petals.tfrecord import encode_example, write_records

SIZE = 16


def pack_train(raw: Dataset, folder: Path, *options: object, **more: object) -> Packed:
    """Pack all splits below `folder`; what is known of train."""
    return dict(pack(raw, folder, *options, **more))["train"]


def jpeg(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).resize((40, 32 + number)).save(data, "JPEG")
    return data.getvalue()


def write(folder: Path, numbers: range, labelled: bool, at: int, broken: int | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    examples = [
        {"id": f"é{n}".encode(), "image": b"no image" if n == broken else jpeg(n)}
        | ({"class": n % 3} if labelled else {})
        for n in numbers
    ]
    write_records(folder / f"{at:02d}-192x192-{len(examples)}.tfrec", map(encode_example, examples))


def dataset(root: Path, broken: int | None = None) -> Dataset:
    root.mkdir(exist_ok=True)
    (root / "classes.txt").write_text("iris\ndaisy\nrose\n")
    folder = root / "tfrecords-jpeg-192x192"
    write(folder / "train", range(5), True, 0, broken)
    write(folder / "train", range(5, 12), True, 1)
    write(folder / "train", range(12, 13), True, 2)
    write(folder / "val", range(20, 22), True, 0)
    return open_dataset(root, SIZE)


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_a_split_holds_each_record_decoded_and_squared_in_order(tmp_path: Path):
    packed = pack_train(dataset(tmp_path / "raw"), tmp_path, SIZE, map)
    split = PackedSplit(tmp_path / "train")
    expected = np.stack([square(decode(jpeg(n), "here", SIZE), SIZE, bicubic) for n in range(13)])
    assert np.array_equal(split.images.read(range(13)), expected)
    assert split.ids == packed.ids == [f"é{n}" for n in range(13)]
    assert split.labels.tolist() == packed.labels.tolist() == [n % 3 for n in range(13)]
    assert split.classes == ["iris", "daisy", "rose"] and split.image_size == SIZE
    assert np.array_equal(packed.thumbnails, thumbnails(expected))


def test_one_worker_and_two_write_the_same_bytes(tmp_path: Path):
    raw = dataset(tmp_path / "raw")
    one = pack_train(raw, tmp_path / "one", SIZE, map)
    two = pack_train(raw, tmp_path / "two", SIZE, partial(in_order, workers=2))
    assert hashes(tmp_path / "one" / "train") == hashes(tmp_path / "two" / "train")
    assert one.ids == two.ids and np.array_equal(one.thumbnails, two.thumbnails)


def test_records_that_lie_across_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    raw = dataset(tmp_path / "raw")
    pack_train(raw, tmp_path / "whole", SIZE, map)
    small = petals.packed.create_shards.__defaults__
    monkeypatch.setattr(petals.packed.create_shards, "__defaults__", (4 * SIZE * SIZE * 3,))
    pack_train(raw, tmp_path / "small", SIZE, map)
    assert small == (64 * 2**20,)
    assert len(list((tmp_path / "small" / "train").glob("images-*.npy"))) == 4
    whole, parts = PackedSplit(tmp_path / "whole" / "train"), PackedSplit(tmp_path / "small" / "train")
    assert np.array_equal(whole.images.read(range(13)), parts.images.read(range(13)))


@pytest.mark.parametrize("share", [(1, 1), (1, 3), (3, 3)])
def test_what_parts_hold_is_not_decoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: tuple[int, int]):
    raw = dataset(tmp_path / "raw")
    whole = pack_train(raw, tmp_path / "whole", SIZE, map)
    count = pack_part(raw, Part(*share), tmp_path / "out", SIZE, map)
    decoded = []
    monkeypatch.setattr(petals.packing, "decode", lambda *image: decoded.append(image) or decode(*image))
    joined = pack_train(raw, tmp_path / "joined", SIZE, map, parts=parts_of(tmp_path / "out"))
    assert hashes(tmp_path / "joined" / "train") == hashes(tmp_path / "whole" / "train") and joined.ids == whole.ids
    assert joined.ready == {(1, 1): 13, (1, 3): 5, (3, 3): 1}[share]
    assert sum("/train/" in where for _, where, _ in decoded) == 13 - joined.ready
    assert count >= joined.ready

    other = pack_train(raw, tmp_path / "large", 2 * SIZE, map, parts=parts_of(tmp_path / "out"))
    assert other.ready == 0, "parts of another size are not these images"


def test_a_split_without_sources_is_empty(tmp_path: Path):
    packed = dict(pack(dataset(tmp_path / "raw"), tmp_path, SIZE, map))["test"]
    assert packed.ids == [] and packed.labels.shape == (0,) and packed.thumbnails.shape == (0, 16, 16, 3)
    assert len(PackedSplit(tmp_path / "test")) == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_the_first_bad_record_ends_it_in_a_line(tmp_path: Path, workers: int):
    raw = dataset(tmp_path / "raw", broken=3)
    with pytest.raises(PetalsError, match=r"train/00-192x192-5.tfrec: record 3 at byte \d+: not a JPEG") as error:
        pack_train(raw, tmp_path, SIZE, partial(in_order, workers=workers))
    assert "\n" not in str(error.value)


def test_all_images_that_cannot_be_read_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Whoever has thirty of them does not want to find one a run, or those of one split."""
    monkeypatch.chdir(tmp_path)
    raw = tmp_path / "raw"
    for number in range(26):
        split, kind = ("val" if number >= 24 else "train"), ("iris", "rose")[number > 0]
        path = raw / split / kind / f"{number:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number) if number in (0, 7) else b"no image")
    with pytest.raises(PetalsError) as error:
        pack_train(open_dataset(raw, SIZE), tmp_path / "packed", SIZE, map)
    first, *named, last = str(error.value).splitlines()
    assert first == "24 images cannot be read:" and len(named) == 20
    assert last == "  … and 4 more; all of them are in .petals/unreadable.txt"
    listed = (tmp_path / ".petals/unreadable.txt").read_text().splitlines()
    assert [f"  {each}" for each in listed[:20]] == named and "val/rose/25.jpg" in listed[23] and len(listed) == 24
    assert named[0].endswith("rose/01.jpg: not a JPEG, PNG or WebP image; convert or remove it")
    assert "rose/08.jpg" in named[6] and not (tmp_path / "packed/train/meta.json").exists()


def test_progress_sees_each_source(tmp_path: Path):
    seen = []

    def watch(parts, description, unit, total):
        for part in parts:
            seen.append((description, len(part.ids), unit, total))
            yield part

    pack_train(dataset(tmp_path / "raw"), tmp_path, SIZE, map, watch)
    assert seen == [("train", n, "part", 3) for n in (5, 7, 1)] + [("val", 2, "part", 1)]


def test_parts_of_other_code_are_not_taken(tmp_path, monkeypatch):
    raw = dataset(tmp_path / "raw")
    pack_part(raw, Part(1, 1), tmp_path / "out", SIZE, map)
    monkeypatch.setattr(petals.packing, "CODE", "edited")
    assert pack_train(raw, tmp_path / "joined", SIZE, map, parts=parts_of(tmp_path / "out")).ready == 0


def test_a_photograph_that_was_replaced_under_its_id_is_not_taken_from_parts(tmp_path: Path):
    raw = tmp_path / "raw"
    pack_part(dataset(raw), Part(1, 1), tmp_path / "out", SIZE, map)
    write(raw / "tfrecords-jpeg-192x192" / "train", range(99, 100), True, 2)
    path = raw / "tfrecords-jpeg-192x192" / "train" / "02-192x192-1.tfrec"
    write_records(path, [encode_example({"id": "é12".encode(), "image": jpeg(99), "class": 0})])
    packed = pack_train(open_dataset(raw, SIZE), tmp_path / "joined", SIZE, map, parts=parts_of(tmp_path / "out"))
    assert packed.ready == 12 and len(packed.ids) == 13
