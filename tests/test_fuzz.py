"""A short turn of the fuzz target."""

from fuzz_tfrecord import fuzz


def test_damaged_files_give_their_records_or_one_error():
    refused = fuzz(mutations=1500, seed=1)
    assert 1000 < refused < 1500, "about three in four are damaged"
