"""JSON and CSV that a diff can show and other programs can read."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest

from petals.tables import write_csv, write_json

AWKWARD = ["plain", "../../x", 'a "quoted", one', "two\nlines", "été, 花", "", " spaces "]


def test_awkward_ids_come_back_from_a_csv(tmp_path: Path):
    rows = [[name, np.int64(number)] for number, name in enumerate(AWKWARD)]
    write_csv(tmp_path / "out.csv", ["id", "label"], iter(rows))
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file)) == [["id", "label"], *([name, str(number)] for name, number in rows)]
    assert b"\r" not in (tmp_path / "out.csv").read_bytes()


def test_a_plain_csv_has_no_quotes(tmp_path: Path):
    write_csv(tmp_path / "out.csv", ["id", "label"], [("a", 1), ("b", 2)])
    assert (tmp_path / "out.csv").read_text() == "id,label\na,1\nb,2\n"


def test_json_is_readable_and_comes_back(tmp_path: Path):
    value = {"ids": AWKWARD, "f1": 0.5}
    write_json(tmp_path / "out.json", value)
    text = (tmp_path / "out.json").read_text(encoding="utf-8")
    assert json.loads(text) == value and "花" in text and text.endswith("}\n")


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_number_that_is_not_finite_is_refused_and_the_file_kept(tmp_path: Path, number: float):
    write_json(tmp_path / "out.json", 1)
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "out.json", {"f1": number})
    assert (tmp_path / "out.json").read_text() == "1\n"
