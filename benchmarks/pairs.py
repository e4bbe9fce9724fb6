"""Measurements in pairs: ours and its limit in turn, in one run, so that what else the machine does strikes both."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field


@dataclass
class Row:
    """One row of the table: `ratios` of ours to `limit`, one a pair, and what they should reach.

    `ours` and `theirs` are the medians behind them, in `unit`. `reach` is such as ">= 0.97", "<= 0.5", or empty.
    """

    what: str
    limit: str
    reach: str
    unit: str
    ratios: list[float]
    ours: float
    theirs: float | None = None
    note: str = ""
    median: float = field(init=False)

    def __post_init__(self) -> None:
        self.median = statistics.median(self.ratios)

    @property
    def reached(self) -> bool | None:
        if not self.reach:
            return None
        relation, _, bound = self.reach.partition(" ")
        return self.median >= float(bound) if relation == ">=" else self.median <= float(bound)

    def summary(self) -> dict[str, object]:
        """What benchmarks/results.json keeps of it, rounded to three digits."""
        kept = {key: value for key, value in asdict(self).items() if key != "ratios" and value != ""}
        kept |= {"least": min(self.ratios), "most": max(self.ratios), "pairs": len(self.ratios)}
        kept["reached"] = self.reached
        return {key: float(f"{value:.3g}") if isinstance(value, float) else value for key, value in kept.items()}


def alternate(ours: Callable[[], float], limit: Callable[[], float], pairs: int) -> tuple[list[float], list[float]]:
    """Measure `ours` and `limit` in turn, `pairs` times each; every second pair begins with the limit."""
    measured: tuple[list[float], list[float]] = ([], [])
    for pair in range(pairs):
        for side in (0, 1) if pair % 2 == 0 else (1, 0):
            measured[side].append((ours, limit)[side]())
    return measured


def ratios(ours: Sequence[float], limit: Sequence[float]) -> list[float]:
    return [mine / theirs for mine, theirs in zip(ours, limit, strict=True)]


def table(rows: Sequence[dict[str, object]]) -> str:
    """The rows of results.json as a table in Markdown: median and, in brackets, spread of the ratios."""
    lines = ["| what | divided by | reach | here | ours |", "|---|---|---|---|---|"]
    for row in rows:
        spread = f" ({row['least']:.3g}–{row['most']:.3g})" if row["pairs"] > 1 else ""
        mark = {True: "", False: " ✗", None: ""}[row["reached"]]
        reach = str(row["reach"]).replace(">=", "≥").replace("<=", "≤") if row.get("reach") else ""
        told = f"{row['ours']:.3g} {row['unit']}" + (f"; {row['note']}" if row.get("note") else "")
        lines.append(
            f"| {row['what']} | {row.get('limit', '')} | {reach} | {row['median']:.3g}{spread}{mark} | {told} |"
        )
    return "\n".join(lines)
