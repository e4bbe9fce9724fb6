"""TFRecord files of `tf.train.Example` messages, read and written without TensorFlow.

A file is a row of records, each framed as TensorFlow documents it
(https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details):

    uint64  length, little-endian
    uint32  masked CRC-32C of the length
    bytes   data
    uint32  masked CRC-32C of the data
"""

import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import google_crc32c
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from petals.errors import PetalsError
from petals.listing import shown

FRAME_BYTES = 16  # what a record takes besides its data

_HEAD = struct.Struct("<QI")
_SUM = struct.Struct("<I")
_Field = descriptor_pb2.FieldDescriptorProto
_Value = TypeVar("_Value", bytes, int)


def masked_crc(data: bytes) -> int:
    """CRC-32C (RFC 3720) of `data`, rotated and offset as TFRecord stores it."""
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def place(path: str | Path, number: int, offset: int) -> str:
    """Where a record is, for messages: file, record number counted from 0, byte offset."""
    return f"{shown(path)}: record {number} at byte {offset}"


def read_records(path: str | Path) -> Iterator[tuple[int, bytes]]:
    """Yield the byte offset and the data of each record, with both checksums checked.

    One record is in memory at a time, and none takes more than the file has left to give.
    Raises PetalsError, with record number and byte offset, at the first thing that is wrong. A file cut
    exactly between two records cannot be told from a whole one: compare the number of records.
    """
    path = Path(path)
    if not path.is_file():  # asked first, because opening a pipe would wait for ever
        raise PetalsError(f"{shown(path)}: no such file")
    try:
        with path.open("rb") as file:
            left = os.fstat(file.fileno()).st_size
            if left == 0:
                raise PetalsError(f"{shown(path)}: record 0 at byte 0: the file is empty; fetch it again")
            offset = number = 0
            while left:
                where = place(path, number, offset)
                head = file.read(_HEAD.size)
                if len(head) < _HEAD.size:
                    raise PetalsError(f"{where}: the file ends inside the record's length; fetch it again")
                length, length_sum = _HEAD.unpack(head)
                if masked_crc(head[:8]) != length_sum:
                    raise PetalsError(
                        f"{where}: the checksum of the length is wrong: the file is damaged or no TFRecord; "
                        "fetch it again"
                    )
                left -= FRAME_BYTES + length
                if left < 0:
                    raise PetalsError(
                        f"{where}: the record claims {length} bytes of data, the file ends {-left} bytes "
                        "too early; fetch it again"
                    )
                data = file.read(length)
                tail = file.read(_SUM.size)
                if len(data) < length or len(tail) < _SUM.size:
                    raise PetalsError(f"{where}: the file became shorter while it was read")
                if masked_crc(data) != _SUM.unpack(tail)[0]:
                    raise PetalsError(
                        f"{where}: the checksum of the data is wrong: the file is damaged; fetch it again"
                    )
                yield offset, data
                offset += FRAME_BYTES + length
                number += 1
    except OSError as error:
        raise PetalsError(f"{shown(path)}: cannot be read: {error.strerror}") from None


def write_records(path: str | Path, payloads: Iterable[bytes]) -> int:
    """Write each payload as a record to `path` and return how many there were."""
    count = 0
    with Path(path).open("wb") as file:
        for data in payloads:
            length = struct.pack("<Q", len(data))
            file.write(length + _SUM.pack(masked_crc(length)) + data + _SUM.pack(masked_crc(data)))
            count += 1
    return count


def encode_example(features: Mapping[str, bytes | int]) -> bytes:
    """Serialise `features`, one value each, as a `tf.train.Example`; equal features give equal bytes."""
    example = _Example()
    for name, value in features.items():
        feature = example.features.feature[name]
        (feature.bytes_list if isinstance(value, bytes) else feature.int64_list).value.append(value)
    return example.SerializeToString(deterministic=True)


def decode_example(payload: bytes, where: str = "record") -> dict[str, list[bytes] | list[int] | list[float]]:
    """Parse a `tf.train.Example` to its features by name; one without a value has an empty list.

    Raises PetalsError, starting with `where`, if the bytes are no such message.
    """
    try:
        example = _Example.FromString(payload)
    except DecodeError:
        raise PetalsError(f"{where}: the data is no tf.train.Example message") from None
    features = {}
    for name, feature in example.features.feature.items():
        kind = feature.WhichOneof("kind")
        features[name] = list(getattr(feature, kind).value) if kind else []
    return features


def feature(example: Mapping[str, list], name: str, kind: type[_Value], where: str) -> _Value:
    """The single value of the feature `name`, which must be of `kind` (bytes or int).

    Raises PetalsError, starting with `where`, if it is missing, of another type, or not exactly one value.
    """
    if name not in example:
        has = ", ".join(map(ascii, sorted(example))) or "none"
        raise PetalsError(f"{where}: the feature {name!r} is missing (the record has {has})")
    values = example[name]
    if len(values) != 1:
        raise PetalsError(f"{where}: the feature {name!r} has {len(values)} values; it must have one")
    if not isinstance(values[0], kind):
        names = {bytes: "bytes", int: "int64", float: "float"}
        raise PetalsError(
            f"{where}: the feature {name!r} is of type {names[type(values[0])]}; it must be {names[kind]}"
        )
    return values[0]


def _example_class() -> type:
    """`tf.train.Example`, as TensorFlow's example.proto and feature.proto define it.

    The descriptors live in a pool of their own, so that TensorFlow may be imported in the same process.
    """
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="tensorflow", syntax="proto3")

    def message(messages, name, fields, repeated=False):
        made = messages.add(name=name)
        for number, (field, kind) in enumerate(fields.items(), start=1):
            label = _Field.LABEL_REPEATED if repeated else _Field.LABEL_OPTIONAL
            if isinstance(kind, str):
                type_name = f".tensorflow.{kind}"
                made.field.add(name=field, number=number, label=label, type_name=type_name)
            else:
                made.field.add(name=field, number=number, label=label, type=kind)
        return made

    top = file.message_type
    message(top, "BytesList", {"value": _Field.TYPE_BYTES}, repeated=True)
    message(top, "FloatList", {"value": _Field.TYPE_FLOAT}, repeated=True)
    message(top, "Int64List", {"value": _Field.TYPE_INT64}, repeated=True)
    kinds = {"bytes_list": "BytesList", "float_list": "FloatList", "int64_list": "Int64List"}
    feature = message(top, "Feature", kinds)
    feature.oneof_decl.add(name="kind")
    for member in feature.field:
        member.oneof_index = 0
    features = message(top, "Features", {"feature": "Features.FeatureEntry"}, repeated=True)
    entry = message(features.nested_type, "FeatureEntry", {"key": _Field.TYPE_STRING, "value": "Feature"})
    entry.options.map_entry = True  # which is how a descriptor says map<string, Feature>
    message(top, "Example", {"features": "Features"})

    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.Example"))


_Example = _example_class()
