"""Parts of a stage that other machines made: found by what decides the pixels, whole or refused."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from project import SMALL, tiny_records

from petals import packed
from petals.errors import PetalsError
from petals.packed import Shards, create_shards
from petals.parts import Part, Parts, key, part, save_keys
from stages import augment, prepare

PREPARE = ("data/tiny", "data/prepared", "metrics/prepare.json", "plots/classes.csv", "plots/duplicates.csv")
AUGMENT = ("data/prepared/train", "data/augmented", "plots/augmentation.jpg")


def make(folder: Path, levels: list[int]) -> None:
    folder.mkdir(parents=True)
    create_shards(folder, len(levels), 2)
    Shards(folder, mode="r+").write(0, np.stack([np.full((2, 2, 3), level, np.uint8) for level in levels]))
    save_keys(folder, [key(level) for level in levels])


def test_images_are_found_in_the_part_that_has_them_all(tmp_path: Path):
    make(tmp_path / "1-of-2", [1, 2, 3])
    make(tmp_path / "2-of-2", [4, 5])
    make(tmp_path / ".3-of-3.partial", [6])  # one that is being made
    parts = Parts(tmp_path)
    assert parts.find([key(3), key(1)])[:, 0, 0, 0].tolist() == [3, 1]
    assert parts.find([key(5)]).shape == (1, 2, 2, 3)
    assert parts.find([key(3), key(4)]) is None and parts.find([key(6)]) is None and parts.find([]) is None
    assert parts.used == 3
    assert Parts(tmp_path / "absent").find([key(1)]) is None


def test_a_key_depends_on_every_thing_and_where_it_ends():
    keys = [key(b"ab", 1), key(b"ab", 2), key(b"a", "b1"), key(b"ab1"), key("ab", 1), key(b"ab", 1.0)]
    assert len(set(keys)) == len(keys) and {len(each) for each in keys} == {16}
    assert key(b"ab", 1) == keys[0]


def test_a_part_that_is_not_whole_is_refused(tmp_path: Path):
    make(tmp_path / "1-of-2", [1, 2])
    save_keys(tmp_path / "1-of-2", [key(1)])
    with pytest.raises(PetalsError, match=r"1-of-2: 2 images, 1 keys; fetch it again"):
        Parts(tmp_path)
    (tmp_path / "1-of-2/keys.npy").write_bytes(b"")
    with pytest.raises(PetalsError, match=r"1-of-2: not a finished part .*; make or fetch it again"):
        Parts(tmp_path)


def test_a_view_is_found_where_pixels_knobs_seed_view_and_code_are_the_same(tmp_path: Path, make_split, monkeypatch):
    def key_of(level: int = 1, hue: float = 0, seed: int = 1, view: int = 0) -> bytes:
        folder = tmp_path / str(level)
        if not folder.exists():
            make_split(folder, np.full((2, 4, 4, 3), level, np.uint8), [0, 1])
        split = packed.PackedSplit(folder)
        split.ids = ["a", "b"]
        return augment.Chunks(split, {"hue": hue}, seed, Parts(None)).keys(0, view)[0]

    keys = [key_of(), key_of(level=2), key_of(hue=1), key_of(seed=2), key_of(view=1)]
    monkeypatch.setattr(augment, "CODE", b"other")
    assert len({*keys, key_of()}) == 6


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/2/3", "-1/2", ""])
def test_what_is_no_part(text: str):
    with pytest.raises(ValueError, match="should be I/N"):
        part(text)
    done = CliRunner().invoke(prepare.main, [*PREPARE, "--part", text])
    assert done.exit_code == 2 and "should be I/N, such as 1/2" in done.output


def test_every_thing_is_in_one_part():
    shares = [Part(number, 3).share(range(8)) for number in (1, 2, 3)]
    assert sorted(each for share in shares for each in share) == list(range(8))


def test_stages_join_parts_to_the_bytes_of_one_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from processes import knobs

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(packed, "PIXELS_AT_ONCE", 7 * SMALL["image_size"] ** 2)
    knobs(views=2)
    tiny_records(Path("data/tiny"))

    def run(command, *arguments: str) -> str:
        done = CliRunner().invoke(command, [*arguments, "--workers", "1"])
        assert done.exit_code == 0, done.output
        return done.output

    def outputs() -> dict[str, bytes]:
        files = (path for root in ("data", "metrics", "plots") for path in Path(root).rglob("*") if path.is_file())
        return {str(path): path.read_bytes() for path in files if ".parts" not in str(path)}

    run(prepare.main, *PREPARE)
    run(augment.main, *AUGMENT)
    alone = outputs()
    counts = []
    for stage, arguments in ((prepare.main, PREPARE), (augment.main, AUGMENT)):
        for text in ("1/2", "2/2"):
            counts.append(int(run(stage, *arguments, "--part", text).split()[-2]))
        assert outputs() == alone, "a part touches nothing else"
        said = run(stage, *arguments)
        assert "of them from data/" in said and outputs() == alone
    assert counts[:2] == [21, 16] and sum(counts[2:]) == 48 and min(counts) > 0

    knobs(views=2, rotation=5.0)
    assert "of them from" not in run(augment.main, *AUGMENT), "views of another policy are not these"
