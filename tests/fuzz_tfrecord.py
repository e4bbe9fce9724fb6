"""A bounded fuzz target for the TFRecord reader: `python tests/fuzz_tfrecord.py [MUTATIONS] [SEED]`.

Each mutation of a valid file must give the original records, as many as come before the damage, and then the end or
one PetalsError; never another exception, a hang, or memory beyond the size of the file.
"""

import random
import signal
import struct
import sys
import tempfile
import tracemalloc
from pathlib import Path

from petals.errors import PetalsError
from petals.tfrecord import decode_example, encode_example, masked_crc, read_records, write_records

SLACK = 256 * 2**10  # of memory: the reader's own objects and the file's buffer
HANG_SECONDS = 10


def valid_file(path: Path, rng: random.Random) -> list[bytes]:
    payloads = [
        encode_example({"image": rng.randbytes(rng.randrange(4000)), "class": number, "id": b"%09x" % number})
        for number in range(rng.randrange(1, 6))
    ]
    write_records(path, payloads)
    return payloads


def mutate(content: bytearray, rng: random.Random) -> None:
    """One damage of a kind that disks, networks and malice make."""
    at, length = rng.randrange(len(content)), rng.randrange(1, 64)
    match rng.randrange(6):
        case 0:
            content[at] ^= 1 << rng.randrange(8)
        case 1:
            del content[at:]
        case 2:
            del content[at : at + length]
        case 3:
            content[at:at] = rng.randbytes(length)
        case 4:
            content[at : at + length] = bytes(min(length, len(content) - at))
        case 5:  # a length that is a lie, with a checksum that is right
            lie = struct.pack("<Q", rng.choice([0, 1, 2**31, 2**32, 2**63, 2**64 - 1, rng.getrandbits(64)]))
            content[:12] = lie + struct.pack("<I", masked_crc(lie))


def fuzz(mutations: int, seed: int) -> int:
    """Try `mutations` files; gives how many were refused. Raises AssertionError with the seed of a failure."""
    refused = 0
    signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(AssertionError("the reader hangs")))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "00-8x8-5.tfrec"
        for number in range(mutations):
            rng = random.Random(seed * 1_000_003 + number)
            payloads = valid_file(path, rng)
            original = path.read_bytes()
            content = bytearray(original)
            for _ in range(rng.randrange(4)):
                if content:
                    mutate(content, rng)
            path.write_bytes(content)

            found = []
            signal.alarm(HANG_SECONDS)
            tracemalloc.start()
            try:
                for _, payload in read_records(path):
                    decode_example(payload)
                    found.append(payload)
            except PetalsError as error:
                assert "\n" not in str(error), (seed, number)
                refused += 1
            finally:
                peak = tracemalloc.get_traced_memory()[1]
                tracemalloc.stop()
                signal.alarm(0)
            assert peak <= 2 * len(content) + SLACK, (seed, number, peak)  # the records found, and the one at hand
            genuine = iter(payloads)
            assert all(payload in genuine or payload == b"" for payload in found), (seed, number)
            assert found == payloads or bytes(content) != original, (seed, number)
    return refused


if __name__ == "__main__":
    mutations, seed = (int(each) for each in (sys.argv[1:] + ["20000", "1"][len(sys.argv) - 1 :]))
    print(f"{fuzz(mutations, seed)} of {mutations} damaged files were refused, the others read as they were written")
