"""How near the stages are to what the machine can do: `make bench`, or python -m benchmarks.bench --only NAME."""

import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import click

from benchmarks import inference, overhead, oxford, packing, training, transfer
from benchmarks.pairs import Row, table
from benchmarks.workspace import REPOSITORY, commit
from petals.commands import Command
from petals.machine import description
from petals.parallel import cores
from petals.tables import write_json

RESULTS = REPOSITORY / "benchmarks" / "results.json"
ROWS: dict[str, Callable[..., Row | str]] = {
    "train": training.measure,
    "gpu-lite0": partial(training.measure_on_gpu, "efficientnet_lite0"),
    "gpu-tiny-vit": partial(training.measure_on_gpu, "tiny_vit_21m"),
    "evaluate": inference.measure_evaluate,
    "prepare": packing.measure_prepare,
    "augment": packing.measure_augment,
    "onnx": inference.measure_onnx,
    "nothing": overhead.measure_nothing,
    "first-step": overhead.measure_first_step,
    "transfer": transfer.measure,
    "oxford": oxford.measure,
}


def alone(function: Callable[..., Row | str], *arguments: object) -> Row | str:
    """Call a function in a process of its own, so that no row inherits threads or memory from another."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def recorded(machine: dict[str, object]) -> dict[str, dict[str, object]]:
    """The rows that results.json has of this `machine`; none where it is of another, or cannot be read."""
    try:
        kept = json.loads(RESULTS.read_text(encoding="utf-8"))
        return kept["rows"] if kept["machine"] == machine else {}
    except (OSError, KeyError, TypeError, ValueError):
        return {}


@click.command(cls=Command)
@click.option("--only", multiple=True, type=click.Choice(list(ROWS)), help="Measure this row; repeatable.")
def main(only: tuple[str, ...]) -> None:
    """Measure each stage against a limit taken in the same run, in turn, and print the median ratios with their spread.

    Writes benchmarks/results.json with the machine's description; rows that are not measured stay as they were there,
    if this is the machine. The photographs for prepare (1 GB) are made once and kept in .petals/bench. Nothing else
    should run meanwhile.
    """
    machine = description(REPOSITORY) | {"cores": cores()}
    rows = recorded(machine)
    with tempfile.TemporaryDirectory(prefix="petals-bench-", ignore_cleanup_errors=True) as scratch:
        for name in only or ROWS:
            began = time.monotonic()
            row = alone(ROWS[name], Path(scratch))
            took = f"({time.monotonic() - began:.0f} s)"
            if isinstance(row, str):
                click.echo(f"{name}: skipped, since {row} {took}", err=True)
                continue
            before = rows.get(name)
            rows[name] = row.summary() | {"commit": commit()}
            was = f", was {before['median']:.3g}" if before else ""
            click.echo(f"{name}: {row.median:.3g} of {min(row.ratios):.3g}…{max(row.ratios):.3g}{was} {took}", err=True)
            write_json(RESULTS, {"machine": machine, "rows": {each: rows[each] for each in ROWS if each in rows}})
    click.echo(table([rows[each] for each in ROWS if each in rows]))


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.bench")
