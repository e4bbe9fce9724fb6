"""The TFRecord reader and writer: the format itself, and every way a file can be damaged."""

import os
import struct
from pathlib import Path

import google_crc32c
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from petals.errors import PetalsError
from petals.tfrecord import decode_example, encode_example, feature, masked_crc, read_records, write_records

# One feature of each type, put together by hand from the protobuf encoding and TensorFlow's example.proto.
EXAMPLE = bytes.fromhex(
    "0a3c"
    "0a0e 0a05 696d616765 1205 0a03 0a01ff"  # image: bytes_list of ff
    "0a17 0a05 636c617373 120e 1a0c 0a0a ffffffffffffffffff01"  # class: int64_list of -1, packed
    "0a11 0a05 73636f7265 1208 1206 0a04 0000003f"  # score: float_list of 0.5
)
PAYLOADS = [b"first", b"", b"third" * 20]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "00-8x8-3.tfrec"
    assert write_records(path, PAYLOADS) == 3
    return path


def payloads(path: Path) -> list[bytes]:
    return [data for _, data in read_records(path)]


def fault(path: Path) -> str:
    with pytest.raises(PetalsError) as error:
        payloads(path)
    message = str(error.value)
    assert str(path) in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("data", "crc"),
    [
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
        (b"123456789", 0xE3069283),
    ],
)
def test_crc_is_that_of_rfc_3720(data: bytes, crc: int):
    assert google_crc32c.value(data) == crc
    unmasked = (masked_crc(data) - 0xA282EAD8) & 0xFFFFFFFF
    assert ((unmasked >> 17) | (unmasked << 15)) & 0xFFFFFFFF == crc


def test_records_come_back_with_their_offsets(path: Path):
    assert list(read_records(path)) == [(0, b"first"), (21, b""), (37, b"third" * 20)]


@settings(max_examples=50)
@given(st.lists(st.binary(max_size=64), min_size=1, max_size=6))
def test_any_payloads_round_trip(tmp_path_factory: pytest.TempPathFactory, records: list[bytes]):
    path = tmp_path_factory.getbasetemp() / "round-trip.tfrec"
    assert write_records(path, iter(records)) == len(records)
    assert payloads(path) == records


@settings(max_examples=400)
@given(st.data())
def test_any_mutation_gives_the_records_or_one_error(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject):
    path = tmp_path_factory.getbasetemp() / "mutated.tfrec"
    write_records(path, PAYLOADS)
    file = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(file) - 1))
    match data.draw(st.sampled_from(["flip", "cut", "insert", "delete"])):
        case "flip":
            file[at] ^= data.draw(st.integers(1, 255))
        case "cut":
            del file[at:]
        case "insert":
            file[at:at] = data.draw(st.binary(min_size=1, max_size=32))
        case "delete":
            del file[at : at + data.draw(st.integers(1, 32))]
    path.write_bytes(file)
    read = []
    try:
        for _, payload in read_records(path):
            read.append(payload)
        assert len(read) < 3 or read == PAYLOADS  # a cut between two records cannot be seen here
    except PetalsError as error:
        assert str(path) in str(error)
        assert "\n" not in str(error)
    remaining = iter(PAYLOADS)
    assert all(payload in remaining for payload in read)


@settings(max_examples=200)
@given(st.binary(max_size=200))
@example(b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f")
def test_any_bytes_as_a_file_give_one_error(tmp_path_factory: pytest.TempPathFactory, content: bytes):
    path = tmp_path_factory.getbasetemp() / "noise.tfrec"
    path.write_bytes(content)
    fault(path)


@pytest.mark.parametrize(
    ("at", "message"),
    [
        (37, "record 2 at byte 37: the checksum of the length is wrong"),
        (37 + 7, "record 2 at byte 37: the checksum of the length is wrong"),
        (37 + 8, "record 2 at byte 37: the checksum of the length is wrong"),
        (37 + 12, "record 2 at byte 37: the checksum of the data is wrong"),
        (37 + 12 + 100, "record 2 at byte 37: the checksum of the data is wrong"),
    ],
    ids=["length", "length-high", "length-sum", "data", "data-sum"],
)
@pytest.mark.parametrize("bit", [0, 7])
def test_a_flipped_bit_is_found_and_placed(path: Path, at: int, message: str, bit: int):
    file = bytearray(path.read_bytes())
    file[at] ^= 1 << bit
    path.write_bytes(file)
    assert message in fault(path)


@pytest.mark.parametrize(
    ("length", "message"),
    [
        (20, "record 0 at byte 0: the record claims 5 bytes of data, the file ends 1 bytes too early"),
        (21 + 5, "record 1 at byte 21: the file ends inside the record's length"),
        (37 + 12, "record 2 at byte 37: the record claims 100 bytes"),
        (0, "the file is empty"),
    ],
)
def test_a_truncated_file(path: Path, length: int, message: str):
    os.truncate(path, length)
    assert message in fault(path)


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 2**40])
def test_a_length_beyond_the_file_takes_no_memory(path: Path, length: int):
    head = struct.pack("<Q", length)
    path.write_bytes(head + struct.pack("<I", masked_crc(head)) + b"data")
    assert f"record 0 at byte 0: the record claims {length} bytes" in fault(path)


def test_what_is_no_file(tmp_path: Path):
    assert "no such file" in fault(tmp_path / "absent.tfrec")
    assert "no such file" in fault(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "no such file" in fault(tmp_path / "pipe")


def test_a_file_that_may_not_be_read(path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert fault(path) == f"{path}: cannot be read: Permission denied"


def test_one_record_is_read_at_a_time(path: Path):
    records = read_records(path)
    assert next(records) == (0, b"first")
    file = bytearray(path.read_bytes())
    file[-1] ^= 1  # the last record: damaged, but not yet reached
    path.write_bytes(file)
    assert next(records)[1] == b""


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path):
    path = tmp_path / "large.tfrec"
    write_records(path, [b"x", bytes(10**6)])
    records = read_records(path)
    next(records)
    os.truncate(path, 1000)
    with pytest.raises(PetalsError, match="record 1 at byte 17: the file became shorter"):
        next(records)


def test_example_is_the_message_that_tensorflow_defines():
    assert decode_example(EXAMPLE) == {"image": [b"\xff"], "class": [-1], "score": [0.5]}


def test_encoding_is_canonical_and_round_trips():
    features = {"image": b"\xff\xd8", "class": 103, "id": b"0a1b"}
    encoded = encode_example(features)
    assert encoded == encode_example(dict(reversed(features.items())))
    assert decode_example(encoded) == {name: [value] for name, value in features.items()}


@given(st.binary(max_size=80))
def test_any_bytes_are_an_example_or_one_error(payload: bytes):
    try:
        assert isinstance(decode_example(payload, "here"), dict)
    except PetalsError as error:
        assert str(error) == "here: the data is no tf.train.Example message"


def test_features_are_asked_for_by_name_and_type():
    found = {"class": [3], "id": [b"a"], "score": [0.5], "none": [], "two": [1, 2]}
    assert feature(found, "class", int, "here") == 3
    assert feature(found, "id", bytes, "here") == b"a"
    for name, kind, message in [
        ("image", bytes, "here: the feature 'image' is missing (the record has 'class', 'id', 'none'"),
        ("class", bytes, "here: the feature 'class' is of type int64; it must be bytes"),
        ("id", int, "here: the feature 'id' is of type bytes; it must be int64"),
        ("score", int, "here: the feature 'score' is of type float; it must be int64"),
        ("none", int, "here: the feature 'none' has 0 values; it must have one"),
        ("two", int, "here: the feature 'two' has 2 values; it must have one"),
    ]:
        with pytest.raises(PetalsError) as error:
            feature(found, name, kind, "here")
        assert str(error.value).startswith(message)


@pytest.mark.real
def test_files_that_tensorflow_wrote(shared_data: Path, tmp_path: Path):
    for path in sorted(shared_data.glob("oxford17/tfrecords-jpeg-192x192/*/*.tfrec")):
        examples = [decode_example(payload) for payload in payloads(path)]
        assert len(examples) == int(path.stem.split("-")[-1])
        labelled = path.parent.name != "test"
        for found in examples:
            assert set(found) == {"image", "id", "class"} - (set() if labelled else {"class"})
            assert feature(found, "image", bytes, "").startswith(b"\xff\xd8\xff")
        # Written again from the payloads it is the same file to the byte.
        write_records(tmp_path / "again", payloads(path))
        assert (tmp_path / "again").read_bytes() == path.read_bytes()
