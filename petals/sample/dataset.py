"""A rendered data set in the layout of Kaggle's *Petals to the Metal*, with its class names and its long tail.

    OUT/tfrecords-jpeg-SxS/{train,val,test}/NN-SxS-COUNT.tfrec

A record has the features image (JPEG), class (not in test) and id. Every picture follows from (seed, split,
index) alone, so any of them can be rendered by itself, in any order, by any number of workers.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from petals.errors import PetalsError
from petals.files import replacing
from petals.flowers import SPLIT_SIZES, TRAIN_COUNTS
from petals.listing import shown
from petals.parallel import in_order
from petals.sample.exact import generator
from petals.sample.picture import jpeg, photograph
from petals.seeding import seed_for
from petals.tfrecord import encode_example, write_records

# The share of the competition's images in data/sample, which git holds.
EMBEDDED = {"train": 0.08, "val": 0.05, "test": 0.02}
EMBEDDED_SIZE = 96
QUALITY = 82

_LEAST = {"train": 3, "val": 2, "test": 1}  # images of a class, however small the share
_FILES = 16  # of a split, as in the competition; fewer where they would hold under 200 images


@dataclass(frozen=True)
class RecordFile:
    """One file to write: images `start` to `stop` of a split."""

    split: str
    share: float
    size: int
    seed: int
    number: int
    start: int
    stop: int

    @property
    def path(self) -> Path:
        """Where it belongs, relative to the data set."""
        square = f"{self.size}x{self.size}"
        return Path(
            f"tfrecords-jpeg-{square}",
            self.split,
            f"{self.number:02}-{square}-{self.stop - self.start}.tfrec",
        )


def class_counts(split: str, share: float = 1.0) -> list[int]:
    """Images by class in a split, in label order; at `share` 1 they add up to the competition's."""
    wanted, total = SPLIT_SIZES[split], sum(TRAIN_COUNTS)
    full = [wanted * count // total for count in TRAIN_COUNTS]
    # The largest remainders get what rounding down has left over.
    remainders = [wanted * count % total for count in TRAIN_COUNTS]
    for label in sorted(range(len(full)), key=lambda label: (-remainders[label], label))[: wanted - sum(full)]:
        full[label] += 1
    return [max(_LEAST[split], int(count * share + 0.5)) for count in full]


@cache
def labels(split: str, share: float, seed: int) -> tuple[int, ...]:
    """The class of each image of a split, shuffled; also of the test images, whose records do not tell."""
    ordered = [label for label, count in enumerate(class_counts(split, share)) for _ in range(count)]
    keys = generator(seed_for("order", seed, split)).random(len(ordered))
    return tuple(ordered[place] for place in keys.argsort(kind="stable"))


def image_id(split: str, index: int, seed: int) -> bytes:
    """Nine hexadecimal digits, different for every image of a data set."""
    number = list(SPLIT_SIZES).index(split) << 34 | index
    for step in range(3):  # each step maps the 36-bit numbers one to one
        number = (number * 0x9E3779B97 + seed_for("id", seed, step)) % (1 << 36)
        number ^= number >> 19
    return b"%09x" % number


def example(split: str, index: int, label: int, size: int, seed: int) -> bytes:
    """Render one image and encode its record."""
    features = {"id": image_id(split, index, seed)}
    features["image"] = jpeg(photograph(label, size, seed_for("picture", seed, split, index)), QUALITY)
    if split != "test":
        features["class"] = label
    return encode_example(features)


def record_files(shares: dict[str, float], size: int, seed: int) -> list[RecordFile]:
    """The files of a data set."""
    files = []
    for split, share in shares.items():
        total = sum(class_counts(split, share))
        count = min(_FILES, -(-total // 200))
        ends = [total * number // count for number in range(count + 1)]
        files += [RecordFile(split, share, size, seed, i, ends[i], ends[i + 1]) for i in range(count)]
    return files


def examples(file: RecordFile) -> Iterator[bytes]:
    """Render the records of one file."""
    known = labels(file.split, file.share, file.seed)
    for index in range(file.start, file.stop):
        yield example(file.split, index, known[index], file.size, file.seed)


def write(out: Path, shares: dict[str, float], size: int, seed: int, workers: int | None = None) -> Iterator[int]:
    """Render a data set to the folder `out`, which appears once it is whole; yield the images in each file done.

    `shares` gives the share of the competition's images by split. Raises PetalsError if `out` holds anything.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise PetalsError(f"{shown(out)}: is there already; remove it or name another folder")
    with replacing(out) as partial:
        yield from in_order(_write_file, [(partial, file) for file in record_files(shares, size, seed)], workers)


def _write_file(task: tuple[Path, RecordFile]) -> int:
    root, file = task
    path = root / file.path
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_records(path, examples(file))
