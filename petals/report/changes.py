"""What changed between the sides: settings, data card, stages, size of the model."""

import json
from typing import Any

from petals.report.markdown import Section, code, counted, few, listing, signed
from petals.report.sides import Side, Stage, number

MOST_ROWS = 60
UNFOLDED = 12  # changed settings that are shown at once: they are why the scores moved
ABSENT = object()


def settings(base: Side, head: Side) -> Section | None:
    """Lines of params.yaml that differ. Here and below: None if none do, or where a side lacks the file."""
    rows = _changed(base.params, head.params)
    return _values("Settings that changed", rows, folded=len(rows) > UNFOLDED) if rows else None


def data_card(base: Side, head: Side) -> Section | None:
    """Entries of the data card (metrics/prepare.json) that differ."""
    rows = _changed(_flat(base.card), _flat(head.card))
    return _values("Data card", rows, folded=True) if rows else None


def leaks(side: Side) -> int:
    """Pairs of near-duplicates across splits, of a side that is scored and does not take them out of train."""
    if side.final or (side.params or {}).get("drop_leaks") is True:
        return 0
    return max(0, int(number((_flat(side.card) or {}).get("near_duplicates.across_splits")) or 0))


def stages(base: Side, head: Side) -> Section | None:
    """Stages whose entry in dvc.lock differs, and in what."""
    rows = [[code(name), _reason(old, new)] for name, old, new in _changed(base.stages, head.stages)]
    if not rows:
        return None
    return Section(f"Stages whose lock changed ({len(rows)})", listing(["stage", "what differs"], rows, MOST_ROWS))


def model_size(base: Side, head: Side) -> Section | None:
    """Bytes of the files under models/, as dvc.lock has them, where they differ."""
    before, after = _models(base), _models(head)
    if before == after:
        return None
    rows = []
    for path in sorted(before.keys() | after.keys()):
        old, new = before.get(path), after.get(path)
        difference = "–" if old is None or new is None else signed(new - old, 0)
        rows.append([code(path), _bytes(old), _bytes(new), difference])
    size = f"{sum(after.values()) / 1e6:,.1f} MB in {counted(len(after), 'file')}" if after else "none in head"
    return Section(
        f"Model: {size}", listing(["file", "base, bytes", "head, bytes", "difference"], rows, MOST_ROWS, "lrrr")
    )


def unchanged(base: Side, head: Side) -> str:
    """A line on what both sides have alike, so that a section left away is not missed."""
    kept = {
        "settings": (base.params, head.params),
        "data card": (_flat(base.card), _flat(head.card)),
        "stages": (base.stages, head.stages),
        "size of the model": (_models(base) or None, _models(head) or None),
    }
    names = [name for name, sides in kept.items() if None not in sides and not _changed(*sides)]
    return f"Unchanged: {', '.join(names)}." if names else ""


def _values(title: str, rows: list[tuple[str, Any, Any]], folded: bool) -> Section:
    cells = [[code(key), _value(old), _value(new)] for key, old, new in rows]
    return Section(f"{title} ({len(rows)})", listing(["", "base", "head"], cells, MOST_ROWS), folded)


def _changed(before: dict[str, Any] | None, after: dict[str, Any] | None) -> list[tuple[str, Any, Any]]:
    """(key, before, after) of what differs, in the order of `after`, then what only `before` has."""
    if before is None or after is None:
        return []
    keys = [*after, *(key for key in before if key not in after)]
    pairs = ((key, before.get(key, ABSENT), after.get(key, ABSENT)) for key in keys)
    return [(key, old, new) for key, old, new in pairs if old != new or type(old) is not type(new)]


def _value(value: Any) -> str:
    if value is ABSENT:
        return "–"
    return code(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str, skipkeys=True))


def _flat(card: dict[str, Any] | None, prefix: str = "") -> dict[str, Any] | None:
    """Nested mappings as one, with dotted keys; None stays None."""
    if card is None:
        return None
    flat: dict[str, Any] = {}
    for key, value in card.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _reason(old: Stage | object, new: Stage | object) -> str:
    if not isinstance(old, Stage):
        return "new stage"
    if not isinstance(new, Stage):
        return "stage removed"
    parts = ["command"] if old.cmd != new.cmd else []
    for label, before, after in (
        ("deps", old.deps, new.deps),
        ("params", old.params, new.params),
        ("outs", old.outs, new.outs),
    ):
        if names := [key for key, _, _ in _changed(before, after)]:
            if label == "outs" and not parts:
                label = "only its outs, from the same inputs:"
            parts.append(f"{label} {few(names)}")
    return "; ".join(parts) or "sizes alone"


def _models(side: Side) -> dict[str, int]:
    sizes = [stage.sizes for stage in (side.stages or {}).values()]
    return {path: size for outs in sizes for path, size in outs.items() if path.startswith("models/")}


def _bytes(size: int | None) -> str:
    return "–" if size is None else f"{size:,}"
