"""Both layouts of raw data, what they mean, and one clear line for everything amiss."""

import os
import pickle
import unicodedata
from pathlib import Path

import pytest

from petals.errors import PetalsError
from petals.listing import UNREAD
from petals.rawdata import Dataset, Record, check_ids, open_dataset
from petals.tfrecord import encode_example, write_records

JPEG = b"\xff\xd8 not looked into here"


def records(dataset: Dataset, split: str) -> list[Record]:
    return [record for source in dataset.splits[split] for record in source.records()]


def opened(root: Path, image_size: int = 128) -> Dataset:
    return open_dataset(root, image_size)


def fault(root: Path) -> str:
    """The one line that opening or reading `root` gives."""
    with pytest.raises(PetalsError) as error:
        dataset = opened(root)
        for split in dataset.splits:
            records(dataset, split)
    message = str(error.value)
    assert "\n" not in message
    return message


# --- TFRecords ---


def write_split(folder: Path, examples: list[dict], size: int = 192, number: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{number:02d}-{size}x{size}-{len(examples)}.tfrec"
    write_records(path, map(encode_example, examples))
    return path


def example(number: int, **changes: bytes | int | None) -> dict:
    features = {"image": JPEG, "id": f"{number:04x}".encode(), "class": number % 3, **changes}
    return {name: value for name, value in features.items() if value is not None}


@pytest.fixture
def kaggle(tmp_path: Path) -> Path:
    (tmp_path / "classes.txt").write_text("iris\ndaisy\nrose\n")
    for size in (192, 224, 512):
        folder = tmp_path / f"tfrecords-jpeg-{size}x{size}"
        write_split(folder / "train", [example(n) for n in range(4)], size)
        write_split(folder / "train", [example(n) for n in range(4, 7)], size, number=1)
        write_split(folder / "val", [example(n) for n in range(10, 12)], size)
        write_split(folder / "test", [example(n, **{"class": None}) for n in range(20, 25)], size)
    return tmp_path


def test_kaggles_layout(kaggle: Path):
    dataset = opened(kaggle)
    assert (dataset.layout, dataset.classes) == ("tfrecords", ["iris", "daisy", "rose"])
    assert [source.count for source in dataset.splits["train"]] == [4, 3]
    train = records(dataset, "train")
    assert [(record.id, record.label) for record in train] == [(f"{n:04x}", n % 3) for n in range(7)]
    assert {record.data for record in train} == {JPEG}
    assert train[4].where.endswith("train/01-192x192-3.tfrec: record 0 at byte 0")
    assert [record.label for record in records(dataset, "val")] == [1, 2]
    assert [record.label for record in records(dataset, "test")] == [-1] * 5


@pytest.mark.parametrize(("image_size", "read"), [(96, 192), (192, 192), (193, 224), (300, 512), (1000, 512)])
def test_the_smallest_size_that_is_large_enough(kaggle: Path, image_size: int, read: int):
    dataset = opened(kaggle, image_size)
    assert dataset.notes == [f"reading tfrecords-jpeg-{read}x{read}"]
    assert f"{read}x{read}" in records(dataset, "val")[0].where


def test_sources_travel_to_other_processes(kaggle: Path):
    dataset = opened(kaggle)
    assert pickle.loads(pickle.dumps(dataset)) == dataset


def test_a_missing_test_split_is_empty(kaggle: Path):
    for path in kaggle.glob("*/test/*"):
        path.unlink()
        path.parent.rmdir()
    assert opened(kaggle).splits["test"] == []


def test_the_competitions_names_are_built_in(kaggle: Path):
    from petals.flowers import CLASS_NAMES

    (kaggle / "classes.txt").unlink()
    dataset = opened(kaggle)
    assert dataset.classes == list(CLASS_NAMES)
    assert any("no classes.txt" in note for note in dataset.notes)


def test_other_files_are_skipped_and_named(kaggle: Path):
    for name in ("README.md", ".hidden.tfrec"):
        (kaggle / "tfrecords-jpeg-192x192" / "train" / name).write_text("")
    note = opened(kaggle).notes[-1]
    assert note.startswith("skipped: ")
    assert "train/README.md" in note and "train/.hidden.tfrec" in note


def test_record_files_beside_the_splits_are_named(kaggle: Path):
    folder = kaggle / "tfrecords-jpeg-192x192"
    content = next(folder.rglob("*.tfrec")).read_bytes()
    for path in (folder / "extra" / "00-192x192-1.tfrec", folder / "01-192x192-1.tfrec"):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    note = opened(kaggle).notes[-1]
    assert "extra" in note and "01-192x192-1.tfrec" in note


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": None}, "the feature 'image' is missing"),
        ({"id": None}, "the feature 'id' is missing"),
        ({"class": None}, "the feature 'class' is missing"),
        ({"image": 3}, "the feature 'image' is of type int64; it must be bytes"),
        ({"id": 3}, "the feature 'id' is of type int64; it must be bytes"),
        ({"class": b"3"}, "the feature 'class' is of type bytes; it must be int64"),
        ({"id": b"\xff"}, r"the id b'\xff' is not UTF-8"),
        ({"class": -1}, "class -1 has no name: there are 3, counted from 0"),
        ({"class": 3}, "class 3 has no name: there are 3, counted from 0; correct or write {root}/classes.txt"),
    ],
)
def test_a_record_that_is_amiss(kaggle: Path, changes: dict, message: str):
    folder = kaggle / "tfrecords-jpeg-192x192" / "train"
    path = write_split(folder, [example(30), example(31, **changes)], number=2)
    offset = 16 + len(encode_example(example(30)))
    message = message.replace("{root}", str(kaggle))
    assert fault(kaggle).startswith(f"{path}: record 1 at byte {offset}: {message}")


@pytest.mark.parametrize("promised", [3, 5])
def test_a_count_that_disagrees_with_the_name(kaggle: Path, promised: int):
    path = next(kaggle.glob("*192/train/00-*"))
    renamed = path.rename(path.with_name(f"00-192x192-{promised}.tfrec"))
    message = fault(kaggle)
    assert str(renamed) in message
    assert f"than the {promised} that" in message or f"4 records, its name promises {promised}" in message


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "09-192x192-1000000000000.tfrec",
            "its name promises 1000000000000 records, too many for its 24 bytes",
        ),
        ("09-224x224-1.tfrec", "224x224 images among those of 192x192"),
        ("09-192x224-1.tfrec", "192x224 images among those of 192x192"),
        ("flowers.tfrec", "the name must be NN-192x192-COUNT.tfrec"),
    ],
)
def test_a_name_that_cannot_be(kaggle: Path, name: str, message: str):
    path = kaggle / "tfrecords-jpeg-192x192" / "train" / name
    path.write_bytes(bytes(24))
    assert fault(kaggle).startswith(f"{path}: {message}")


def test_an_empty_file(kaggle: Path):
    next(kaggle.glob("*192/val/*")).write_bytes(b"")
    assert "its name promises 2 records, too many for its 0 bytes" in fault(kaggle)


def test_a_train_folder_that_is_not_there(kaggle: Path):
    (kaggle / "tfrecords-jpeg-192x192" / "train").rename(kaggle / "elsewhere")
    assert "no train folder" in fault(kaggle)


def test_a_validation_split_of_another_name_in_kaggles_layout(kaggle: Path):
    folder = kaggle / "tfrecords-jpeg-192x192"
    (folder / "val").rename(folder / "valid")
    assert fault(kaggle) == f"{folder / 'valid'}: the validation split's folder should be called val; rename it"


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_split_that_data_may_do_without(kaggle: Path, split: str):
    (kaggle / "tfrecords-jpeg-192x192" / split).rename(kaggle / "elsewhere")
    assert opened(kaggle).splits[split] == [] != opened(kaggle).splits["train"]


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_split_without_files(kaggle: Path, split: str):
    for path in (kaggle / "tfrecords-jpeg-192x192" / split).iterdir():
        path.unlink()
    assert f"{split}: no .tfrec file" in fault(kaggle)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"iris\n\nrose\n", "line 2 is empty"),
        (b"iris\nrose\niris\n", "line 3 repeats the class 'iris'"),
        (b"", "line 1 is empty"),
        (b"\xff\n", "cannot be read as UTF-8 text"),
        (b"iris\n", "one class only, 'iris'"),
    ],
)
def test_a_list_of_classes_that_is_amiss(kaggle: Path, text: bytes, message: str):
    (kaggle / "classes.txt").write_bytes(text)
    assert message in fault(kaggle)


def test_a_list_of_classes_from_another_system(kaggle: Path):
    (kaggle / "classes.txt").write_bytes("\ufeffiris\r\ndaisy \r\nro\u0301se".encode())
    assert opened(kaggle).classes == ["iris", "daisy", "r\u00f3se"]


# --- one folder a class ---


def images(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(JPEG + os.fsencode(name))


@pytest.fixture
def flowers(tmp_path: Path) -> Path:
    """CLASS/*.jpg without a val split: eight roses, three irises, one tulip."""
    images(tmp_path / "rose", *[f"r{n}.jpg" for n in range(8)])
    images(tmp_path / "iris", "i0.JPG", "i1.jpeg", "i2.WebP")
    images(tmp_path / "tulip", "t0.png")
    return tmp_path


def with_splits(flowers: Path) -> Path:
    (flowers / "train").mkdir()
    for name in ("rose", "iris", "tulip"):
        (flowers / name).rename(flowers / "train" / name)
    images(flowers / "val" / "rose", "v0.jpg")
    images(flowers / "test", "x1.jpg", "x0.png")
    return flowers


def ids(dataset: Dataset, split: str) -> list[str]:
    return [record.id for record in records(dataset, split)]


def test_a_folder_a_class(flowers: Path):
    dataset = opened(with_splits(flowers))
    assert (dataset.layout, dataset.classes, dataset.notes) == ("folders", ["iris", "rose", "tulip"], [])
    train = records(dataset, "train")
    assert [record.id for record in train] == ["i0", "i1", "i2", *[f"r{n}" for n in range(8)], "t0"]
    assert [record.label for record in train] == [0] * 3 + [1] * 8 + [2]
    assert train[0].data == JPEG + b"i0.JPG"
    assert train[0].where == str(flowers / "train" / "iris" / "i0.JPG")
    assert [(record.id, record.label) for record in records(dataset, "val")] == [("v0", 1)]
    assert [(record.id, record.label) for record in records(dataset, "test")] == [("x0", -1), ("x1", -1)]


def test_without_a_val_folder_val_is_empty(flowers: Path):
    dataset = opened(flowers)
    assert dataset.splits["val"] == dataset.splits["test"] == dataset.notes == []
    assert sorted(ids(dataset, "train")) == ["i0", "i1", "i2", *[f"r{n}" for n in range(8)], "t0"]


def test_many_files_come_in_chunks(flowers: Path):
    images(flowers / "rose", *[f"n{n}.jpg" for n in range(600)])
    sources = opened(flowers).splits["train"]
    assert [source.count for source in sources] == [256, 256, 100]
    assert pickle.loads(pickle.dumps(sources)) == sources


def test_ids_are_paths_where_stems_occur_twice(flowers: Path):
    before = {*ids(opened(flowers), "train")}
    images(flowers / "iris", "r0.jpg")
    dataset = opened(flowers)
    found = ids(dataset, "train")
    assert {*found} - before == {"iris/r0", "rose/r0"} and before - {*found} == {"r0"}, "the others keep theirs"
    assert any("2 ids are paths" in note and "file names occur twice ('r0')" in note for note in dataset.notes)


def test_two_files_that_differ_in_their_extension_alone(flowers: Path):
    images(flowers / "rose", "r0.png")
    message = fault(flowers)
    assert message.endswith("rose/r0.jpg and " + str(flowers / "rose/r0.png") + " have one id, 'rose/r0'; rename one")
    images(flowers / "rose", "r1.png", "r2.png")
    assert fault(flowers).endswith("have one id, 'rose/r0'; so it is with 2 more ids: rename one of each")


def test_ids_of_test_are_stems_whatever_others_are_called(flowers: Path):
    images(with_splits(flowers) / "test", "r0.jpg")
    dataset = opened(flowers)
    assert "r0" in ids(dataset, "test") and "train/rose/r0" in ids(dataset, "train")
    images(flowers / "test", "r0.png")
    assert "test/r0.jpg and " in fault(flowers)


def test_hidden_and_other_files_are_skipped_and_named(flowers: Path):
    images(flowers / "rose", ".hidden.jpg", "notes.txt", "Thumbs.db", "._r0.jpg")
    images(flowers / "rose" / "nested", "n.jpg")
    images(flowers / ".cache", "c.jpg")
    dataset = opened(flowers)
    assert sorted(ids(dataset, "train") + ids(dataset, "val"))[-1] == "t0"
    assert len(ids(dataset, "train") + ids(dataset, "val")) == 12
    assert (
        dataset.notes[-1] == "skipped: 1 image too deep: rose/nested (move them up); .cache, rose/._r0.jpg and 3 more"
    )


def test_photographs_that_are_passed_over_are_told_by_kind(flowers: Path):
    images(flowers / "rose", *[f"h{n}.HEIC" for n in range(8)], "s.tiff", "._h0.HEIC", "notes.txt")
    images(flowers / "rose" / "garden", *[f"g{n}.jpg" for n in range(3)], "notes.txt")
    images(flowers / "rose" / "garden" / "May", "m.heic")
    images(flowers / "iris" / "garden", "o.jpg")
    images(flowers, "loose.jpg")
    (flowers / "tulip" / "empty").mkdir()
    assert opened(flowers).notes == [
        "skipped: 8 .heic, 1 .tiff (convert them to JPEG); 5 images too deep: iris/garden, rose/garden (move them up); "
        "1 image in no class: loose.jpg; rose/._h0.HEIC, rose/notes.txt and 1 more"
    ]


@pytest.mark.parametrize("place", ["val/rose", "test"])
def test_what_is_skipped_in_val_and_test_is_told_too(flowers: Path, place: str):
    (with_splits(flowers) / place / "notes.txt").touch()
    assert "notes.txt" in " ".join(opened(flowers).notes)


def test_photographs_beside_the_splits_are_told(flowers: Path):
    images(with_splits(flowers) / "more" / "rose", "a.jpg", "b.jpg")
    images(flowers / "test" / "rose", "c.jpg")
    note = "skipped: 1 image too deep: test/rose (move them up); 2 images beside train: more"
    assert opened(flowers).notes == [note]


def test_what_is_told_of_skipped_files_stays_short(flowers: Path):
    images(flowers / "rose", *[f"{'n' * 200}{n}.txt" for n in range(30)])
    images(flowers / "rose" / ("d" * 200), "a.jpg")
    images(flowers / "rose", *[f"a{suffix}" for suffix in UNREAD])
    (note,) = opened(flowers).notes
    assert len(note) < 500 and note.endswith("… and 28 more")


def test_names_with_spaces_accents_and_quotes(flowers: Path):
    decomposed = unicodedata.normalize("NFD", "œillet é")
    images(flowers / decomposed, "a b.jpg", unicodedata.normalize("NFD", "é,\"'.jpg"))
    dataset = opened(flowers)
    assert dataset.classes == ["iris", "rose", "tulip", "œillet é"]
    found = records(dataset, "train") + records(dataset, "val")
    assert {record.id for record in found if record.label == 3} == {"a b", "é,\"'"}


@pytest.mark.parametrize("name", ["c\nd", "crocus\r", "a\x85", "b\u2029c"])
def test_names_of_several_lines(flowers: Path, name: str):
    (flowers / "rose" / f"{name}.jpg").write_bytes(JPEG)
    assert "the name holds a control character" in fault(flowers) and "\n" not in fault(flowers)
    (flowers / "rose" / f"{name}.jpg").unlink()
    images(flowers / name, "a.jpg")
    assert "the name holds a control character" in fault(flowers)


def test_names_that_are_not_utf_8(flowers: Path):
    (flowers / "rose" / os.fsdecode(b"\xff.jpg")).write_bytes(JPEG)
    assert "the name is not UTF-8" in fault(flowers)


def test_two_names_that_look_the_same(flowers: Path):
    images(flowers / "é", "a.jpg")
    images(flowers / unicodedata.normalize("NFD", "é"), "b.jpg")
    if len(list(flowers.iterdir())) < 5:
        pytest.skip("this file system composes names itself")
    assert "two folders have the name 'é'" in fault(flowers)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["10", "2", "0", "1"], ["0", "1", "2", "10"]),  # class 2 has label 2, and that number in a submission
        (["010", "2", "001"], ["001", "2", "010"]),
        (["10", "2", "rose"], ["10", "2", "rose"]),
    ],
)
def test_classes_that_are_numbers_stand_in_their_order(tmp_path: Path, names: list[str], expected: list[str]):
    for name in names:
        images(tmp_path / "train" / name, f"{name}.jpg")
    assert opened(tmp_path).classes == expected


def test_classes_txt_gives_the_order(flowers: Path):
    (flowers / "classes.txt").write_text("tulip\nrose\niris\n")
    dataset = opened(flowers)
    assert dataset.classes == ["tulip", "rose", "iris"]
    assert {record.id: record.label for record in records(dataset, "train")}["t0"] == 0
    assert not any("skipped" in note for note in dataset.notes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("iris\nrose\n", "the class 'tulip' is in train but not in classes.txt"),
        ("iris\nrose\ntulip\naster\n", "the class 'aster' is in classes.txt but not in train"),
    ],
)
def test_classes_txt_must_agree(flowers: Path, text: str, message: str):
    (flowers / "classes.txt").write_text(text)
    assert message in fault(flowers)


def test_a_class_without_an_image(flowers: Path):
    images(flowers / "aster", "notes.txt")
    images(flowers / "aster" / ".trash", "a.jpg")
    images(flowers / "aster" / "texts", "a.txt")
    assert fault(flowers).startswith(f"{flowers / 'aster'}: no image in it; add some or remove the folder; expected")


def put_into(folder: Path, inside: list[Path]) -> None:
    folder.mkdir(parents=True)
    for path in inside:
        path.rename(folder / path.name)


@pytest.mark.parametrize("place", ["", "train"])
def test_classes_a_level_too_deep_are_to_be_moved_up(flowers: Path, place: str):
    put_into(flowers / place / "mine", list(flowers.iterdir()))
    said = f"{flowers / place / 'mine'}: no image in it, but folders: move them up one level; expected"
    assert fault(flowers).startswith(said)


def test_kaggles_layout_a_level_too_deep(kaggle: Path):
    put_into(kaggle / "petals", list(kaggle.iterdir()))
    assert fault(kaggle).startswith(f"{kaggle / 'petals'}: no image in it, but folders: move them up one level")


def test_images_in_a_folder_of_their_class_are_to_be_moved_up(flowers: Path):
    images(flowers / "aster" / "garden", "a.jpg")
    said = f"{flowers / 'aster'}: no image in it, but a folder, garden: move what that holds up one level; expected"
    assert fault(flowers).startswith(said)


def test_photographs_in_a_format_that_is_not_read_are_to_be_converted(flowers: Path):
    images(flowers / "aster", *[f"a{n}.HEIC" for n in range(40)], "b.tif", "notes.txt")
    said = "no image in it that can be read, but 40 .heic, 1 .tif: convert them to JPEG first"
    assert fault(flowers) == f"{flowers / 'aster'}: {said}"
    (flowers / "aster").rename(flowers / "test")
    put_into(flowers / "train", [flowers / name for name in ("rose", "iris", "tulip")])
    assert fault(flowers) == f"{flowers / 'test'}: {said}"


def test_one_class_only(tmp_path: Path):
    images(tmp_path / "rose", "a.jpg", "b.jpg")
    assert "one class only, 'rose'" in fault(tmp_path)


def test_a_class_in_val_that_train_lacks(flowers: Path):
    images(with_splits(flowers) / "val" / "aster", "a.jpg")
    assert fault(flowers).startswith(f"{flowers / 'val'}: the class 'aster' is not in train")


def test_a_split_folder_without_images(flowers: Path):
    with_splits(flowers)
    for path in (flowers / "test").iterdir():
        path.unlink()
    assert fault(flowers).startswith(f"{flowers / 'test'}: no image in it")
    (flowers / "test").rmdir()
    (flowers / "val" / "rose" / "v0.jpg").unlink()
    assert fault(flowers).startswith(f"{flowers / 'val' / 'rose'}: no image in it; add some or remove the folder")
    (flowers / "val" / "rose").rmdir()
    assert fault(flowers).startswith(f"{flowers / 'val'}: no class folder with images")


@pytest.mark.parametrize("name", ["train", "test"])
def test_a_class_with_the_name_of_a_split_is_told_to_take_another(tmp_path: Path, name: str):
    for kind in ("car", "plane", name):
        images(tmp_path / kind, "a.jpg", "b.jpg")
    assert fault(tmp_path).endswith("a class that is called train, val or test needs another name")


def test_a_test_split_with_class_folders_is_told_that_it_has_no_labels(flowers: Path):
    for path in (with_splits(flowers) / "test").iterdir():
        path.unlink()
    images(flowers / "test" / "rose", "r9.jpg")
    message = fault(flowers)
    assert "a test split has no labels here" in message and message.endswith("python -m petals.predict --score")


@pytest.mark.parametrize("name", ["valid", "validation", "dev"])
def test_a_validation_split_of_another_name_is_not_passed_over(flowers: Path, name: str):
    (with_splits(flowers) / "val").rename(flowers / name)
    assert fault(flowers) == f"{flowers / name}: the validation split's folder should be called val; rename it"


@pytest.mark.parametrize("present", [(), ("train",), ("val", "test")])
def test_a_split_that_is_written_otherwise_is_not_passed_over(flowers: Path, present: tuple[str, ...]):
    with_splits(flowers)
    for split in {"train", "val", "test"} - {*present}:
        (flowers / split).rename(flowers / split.title())
    if (flowers / "train").is_dir() == (flowers / "Train").is_dir():
        pytest.skip("this file system makes no difference between upper and lower case")
    name, title = ("test", "test") if present == ("train",) else ("train", "training")
    said = f"{flowers / name.title()}: the {title} split's folder should be called {name}; rename it"
    assert fault(flowers) == said


def test_a_class_may_be_called_as_a_split_is(flowers: Path):
    (flowers / "rose").rename(flowers / "Train")
    (flowers / "iris").rename(flowers / "dev")
    assert opened(flowers).classes == ["Train", "dev", "tulip"]
    images(flowers / "Val", "a.heic")
    assert fault(flowers).startswith(f"{flowers / 'Val'}: no image in it that can be read")


def test_a_file_that_vanishes(flowers: Path):
    dataset = opened(flowers)
    path = flowers / "tulip" / "t0.png"
    path.unlink()
    with pytest.raises(PetalsError, match=r"t0\.png: cannot be read: No such file"):
        records(dataset, "train")


def test_links_to_files_inside_and_to_the_data_itself_are_followed(flowers: Path, tmp_path_factory):
    (flowers / "tulip" / "t1.jpg").symlink_to("../rose/r0.jpg")
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "data"
    elsewhere.symlink_to(flowers)
    dataset = opened(elsewhere)
    found = {record.id: record.data for record in records(dataset, "train") + records(dataset, "val")}
    assert found["t1"] == found["r0"]


@pytest.mark.parametrize(
    ("link", "target", "message"),
    [
        ("rose/out.jpg", "../../outside.jpg", "a link out of the data folder"),
        ("outside", "../folder", "a link out of the data folder"),
        ("rose/self.jpg", "self.jpg", "a link in a circle"),
        ("rose/up", "..", "a link in a circle"),
        ("train", "train", "a link in a circle"),
        ("rose/gone.jpg", "nowhere.jpg", "a link to nothing"),
        ("tulip", "rose", "a link to a folder, which DVC does not follow"),
    ],
)
def test_a_link_that_leads_nowhere_good(tmp_path: Path, link: str, target: str, message: str):
    root = tmp_path / "data"
    images(tmp_path, "outside.jpg")
    images(tmp_path / "folder", "o.jpg")
    images(root / "rose", "a.jpg", "b.jpg")
    images(root / "iris", "c.jpg")
    (root / link).symlink_to(target)
    assert fault(root).startswith(f"{root / link}: {message}")


@pytest.mark.parametrize("link", ["tfrecords-jpeg-SxS", "tfrecords-jpeg-SxS/val", "tfrecords-jpeg-SxS/val/x"])
def test_links_that_dvc_does_not_follow_are_refused_in_kaggles_layout(kaggle: Path, tmp_path_factory, link: str):
    link, elsewhere = link.replace("S", "192"), tmp_path_factory.mktemp("elsewhere") / "there"
    if (kaggle / link).exists():
        (kaggle / link).rename(elsewhere)
    else:
        elsewhere.mkdir()
    (kaggle / link).symlink_to(elsewhere)
    assert fault(kaggle).startswith(f"{kaggle / link}: a link out of the data folder")


# --- neither, and ids ---


@pytest.mark.parametrize("entries", [[], ["notes.txt"], ["a.jpg"], ["val/rose/a.jpg"], ["docs/page.html"]])
def test_neither_layout(tmp_path: Path, entries: list[str]):
    for entry in entries:
        images((tmp_path / entry).parent, Path(entry).name)
    message = fault(tmp_path)
    assert "tfrecords-jpeg-SxS" in message and "CLASS/*.jpg" in message


def test_no_such_folder(tmp_path: Path):
    message = fault(tmp_path / "absent")
    assert "no such folder; expected tfrecords-jpeg-SxS" in message


@pytest.mark.parametrize("name", ["b", 'é,"'])
def test_an_id_that_stands_twice_is_found_in_both_places(name: str):
    found = [("a", "train/0.tfrec: record 0"), (name, "train/0.tfrec: record 1"), (name, "val/0.tfrec: record 7")]
    with pytest.raises(PetalsError) as error:
        check_ids(found)
    assert str(error.value) == (
        f"the id {name!r} stands twice, in train/0.tfrec: record 1 and in val/0.tfrec: record 7;"
        " give each image its own"
    )


def test_ids_are_only_names(kaggle: Path):
    odd = ["../../x", 'a,"b"', "é"]
    write_split(
        kaggle / "tfrecords-jpeg-192x192" / "train",
        [example(n, id=name.encode()) for n, name in enumerate(odd)],
        number=2,
    )
    found = ids(opened(kaggle), "train")
    assert found[-3:] == odd
    check_ids([(name, "") for name in found + ids(opened(kaggle), "val")])
    with pytest.raises(PetalsError, match=r"^train: record 0: the id 'c\\rd' holds a control character"):
        check_ids([("c\rd", "train: record 0")])


@pytest.mark.real
def test_the_oxford_flowers(shared_data: Path):
    dataset = opened(shared_data / "oxford17")
    counts = {split: len(records(dataset, split)) for split in dataset.splits}
    assert counts == {"train": 748, "val": 204, "test": 408}
    assert len(dataset.classes) == 17
    check_ids([(name, split) for split in dataset.splits for name in ids(dataset, split)])
