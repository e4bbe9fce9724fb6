"""The rendered sample: its bytes, its counts, its layout, and that its kinds can be told apart, but not easily."""

import io
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from petals.errors import PetalsError
from petals.flowers import CLASS_NAMES, TRAIN_COUNTS
from petals.sample.__main__ import main
from petals.sample.dataset import EMBEDDED, EMBEDDED_SIZE, class_counts, example, image_id, labels, record_files, write
from petals.sample.exact import blur, cos, enlarge, sin, smooth, waves
from petals.sample.kinds import LOOKS
from petals.sample.picture import photograph
from petals.tfrecord import decode_example, read_records

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "data" / "sample"
TINY = {"val": 0.001, "test": 0.001}  # the least of each class: 208 and 104 images


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def records(folder: Path, split: str) -> list[dict]:
    paths = sorted(folder.glob(f"tfrecords-jpeg-*/{split}/*.tfrec"))
    return [decode_example(data) for path in paths for _, data in read_records(path)]


def pixels(record: dict) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(record["image"][0])))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("tiny") / "flowers"
    assert sum(write(out, TINY, 16, 3, workers=1)) == 312
    return out


@pytest.mark.slow
def test_the_command_renders_the_committed_sample_again(tmp_path):
    result = CliRunner().invoke(main, [str(tmp_path / "sample")])
    assert result.exit_code == 0, result.output
    again, committed = files_of(tmp_path / "sample"), files_of(SAMPLE)
    assert again.keys() == committed.keys()
    assert [name for name in again if again[name] != committed[name]] == []


def test_the_committed_sample_is_small():
    assert sum(map(len, files_of(SAMPLE).values())) <= 4_000_000


def test_the_full_size_is_the_competitions():
    assert class_counts("train") == list(TRAIN_COUNTS)
    assert [sum(class_counts(split)) for split in ("train", "val", "test")] == [12_753, 3_712, 7_382]
    for split, size in (("val", 3_712), ("test", 7_382)):
        exact = [size * count / 12_753 for count in TRAIN_COUNTS]
        assert max(abs(a - b) for a, b in zip(class_counts(split), exact, strict=True)) < 1
    files = record_files(dict.fromkeys(EMBEDDED, 1.0), 192, 1)
    assert Counter(file.split for file in files) == {"train": 16, "val": 16, "test": 16}
    assert str(files[0].path) == os.path.join("tfrecords-jpeg-192x192", "train", "00-192x192-797.tfrec")


def test_the_sample_keeps_every_class_and_the_long_tail():
    found = {split: records(SAMPLE, split) for split in EMBEDDED}
    for split in ("train", "val"):
        counts = Counter(record["class"][0] for record in found[split])
        assert [counts[label] for label in range(104)] == class_counts(split, EMBEDDED[split])
    counts = class_counts("train", EMBEDDED["train"])
    assert max(counts) >= 10 * min(counts) and min(counts) >= 3
    assert min(class_counts("val", EMBEDDED["val"])) >= 2
    assert all("class" not in record for record in found["test"])
    assert set(labels("test", EMBEDDED["test"], 1)) == set(range(104))
    for split, share in EMBEDDED.items():
        names = [path.name for path in sorted(SAMPLE.glob(f"*/{split}/*.tfrec"))]
        assert names == [file.path.name for file in record_files({split: share}, EMBEDDED_SIZE, 1)]


def test_classes_are_shuffled_over_the_files():
    first = [record["class"][0] for record in records(SAMPLE, "train")[:175]]
    assert len(set(first)) > 40


def test_one_image_rendered_alone_is_that_in_the_file(tiny):
    found = records(tiny, "val")
    for index in (0, 57, 207):
        label = labels("val", TINY["val"], 3)[index]
        assert decode_example(example("val", index, label, 16, 3)) == found[index]


@pytest.mark.slow
def test_any_number_of_workers_and_another_order_give_the_same_bytes(tiny, tmp_path):
    assert sum(write(tmp_path / "two", TINY, 16, 3, workers=2)) == 312
    assert files_of(tmp_path / "two") == files_of(tiny)


def test_another_seed_gives_other_pictures_and_ids():
    assert example("train", 0, 5, 16, 1) != example("train", 0, 5, 16, 2)
    assert not np.array_equal(photograph(5, 16, 1), photograph(5, 16, 2))
    assert image_id("train", 0, 1) != image_id("train", 0, 2)


def test_ids_are_nine_hexadecimal_digits_and_unique():
    ids = {image_id(split, index, 1) for split in EMBEDDED for index in range(13_000)}
    assert len(ids) == 3 * 13_000
    assert all(len(name) == 9 and int(name, 16) >= 0 for name in ids)


@pytest.mark.parametrize("size", [16, 33, 96])
def test_a_picture_has_the_size_that_was_asked_for(size):
    picture = photograph(53, size, 7)
    assert picture.shape == (size, size, 3) and picture.dtype == np.uint8
    assert np.ptp(picture) > 40


_HASH = """
import hashlib
import numpy as np
from petals.sample.picture import jpeg, photograph
digest = hashlib.sha256()
for label in range(0, 104, 3):
    digest.update(photograph(label, 48, 900 + label).tobytes())
print(digest.hexdigest(), bool(np.show_config(mode="dicts")["SIMD Extensions"].get("found")))
"""


@pytest.mark.slow
def test_the_pixels_do_not_depend_on_the_processors_simd():
    found = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])
    if not found:
        pytest.skip("NumPy uses no optional SIMD here")
    runs = []
    for disabled in ("", " ".join(found)):
        environment = {**os.environ, "NPY_DISABLE_CPU_FEATURES": disabled, "PYTHONPATH": str(ROOT)}
        run = [sys.executable, "-c", _HASH]
        runs.append(subprocess.run(run, env=environment, check=True, capture_output=True, text=True).stdout.split())
    (digest, with_simd), (digest_without, without_simd) = runs
    assert (with_simd, without_simd) == ("True", "False")
    assert digest == digest_without


def test_exact_arithmetic_agrees_with_numpys():
    turns = np.linspace(-2, 2, 1001).astype(np.float32)
    assert np.allclose(waves(turns), np.cos(2 * np.pi * turns), atol=2e-3)
    assert np.allclose([cos(t) for t in turns], np.cos(2 * np.pi * turns), atol=1e-3)
    assert np.allclose([sin(t) for t in turns], np.sin(2 * np.pi * turns), atol=1e-3)
    assert smooth(np.array([-1.0, 0.0, 0.5, 1.0, 2.0])).tolist() == [0, 0, 0.5, 1, 1]
    ramp = np.tile(np.arange(8, dtype=np.float32), (8, 1))
    assert np.allclose(blur(ramp, (1,))[:, 1:-1], ramp[:, 1:-1])  # a blur leaves a slope as it is
    assert np.allclose(np.diff(enlarge(ramp, 16)[:, 1:-1]), 0.5)  # and stretching halves it


def test_kinds_can_be_learned_but_not_from_their_pixels_alone():
    """Nearest class mean on 8 × 8 thumbnails: far above chance (0.0096), far from perfect."""

    def thumbnails(split: str) -> tuple[np.ndarray, np.ndarray]:
        found = records(SAMPLE, split)
        images = np.stack([pixels(record) for record in found]).astype(np.float64)
        small = images.reshape(len(images), 8, 12, 8, 12, 3).mean((2, 4)).reshape(len(images), -1)
        return small / 255, np.array([record["class"][0] for record in found])

    (train, known), (val, truth) = thumbnails("train"), thumbnails("val")
    means = np.stack([train[known == label].mean(0) for label in range(104)])
    guesses = ((val[:, None] - means) ** 2).sum(2).argmin(1)
    assert 0.05 < (guesses == truth).mean() < 0.6


def test_every_kind_has_a_look_of_its_own():
    assert len(LOOKS) == len(set(LOOKS)) == len(CLASS_NAMES)


def test_a_folder_that_holds_something_is_refused(tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(PetalsError, match="is there already"):
        next(write(tmp_path, TINY, 16, 1))
    result = CliRunner().invoke(main, [str(tmp_path), "--scale", "0.001", "--size", "16"])
    assert result.exit_code == 1
    assert result.output.strip().count("\n") == 0 and "name another folder" in result.output
    assert (tmp_path / "note.txt").read_text() == "mine"


def test_a_scale_that_is_no_number_is_refused(tmp_path):
    result = CliRunner().invoke(main, [str(tmp_path / "out"), "--scale", "nan"])
    assert result.exit_code == 2 and "--scale: nan is no number" in result.output


def test_where_it_may_not_write_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    result = CliRunner().invoke(main, [str(tmp_path / "file" / "out"), "--scale", "0.001", "--size", "16"])
    assert result.exit_code == 1
    assert result.output.startswith("Error: ") and "file: File exists" in result.output


def test_a_run_that_is_broken_off_leaves_nothing(tmp_path):
    started = write(tmp_path / "flowers", TINY, 16, 1, workers=1)
    next(started)
    started.close()
    assert list(tmp_path.iterdir()) == []
