"""Small files that git keeps and a diff can show: JSON and CSV with one way of writing each."""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from petals.files import write_text


def write_json(path: str | Path, value: object) -> None:
    """Write `value` as indented JSON; numbers that are not finite are refused with ValueError."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_csv(path: str | Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV (RFC 4180 quoting, Unix line ends) with a header line."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, text.getvalue())
