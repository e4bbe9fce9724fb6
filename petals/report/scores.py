"""The verdict and the table of scores: what a reviewer reads first, and maybe alone."""

import json

from petals.report.comparison import Comparison, own_scores, set_difference
from petals.report.markdown import code, counted, listing, signed
from petals.report.sides import Side, number
from petals.report.statistics import FEWEST, RESAMPLES, Interval, mcnemar

CORRUPTED = "mean_macro_f1"
INT8 = "int8.macro_f1"
LABELS = {
    "macro_f1": "macro F1",
    CORRUPTED: "macro F1 on corrupted images, the mean",
    INT8: "macro F1 in int8",
    "accuracy": "accuracy",
    "top5_accuracy": "top-5 accuracy",
    "nll": "negative log-likelihood (lower is better)",
    "ece": "calibration error (lower is better)",
    "calibration.nll_before": "… negative log-likelihood before temperature scaling",
    "calibration.ece_before": "… calibration error before temperature scaling",
    "calibration.temperature": "temperature",
}
MOST_ROWS = 25
DISAGREEMENT = 5e-4  # between evaluate.json and predictions.csv, more than rounding explains


def verdict(base: Side, head: Side, comparison: Comparison | None) -> str:
    """One line: macro F1 of both sides and whether it moved by more than noise."""
    before, after = values(base).get("macro_f1"), values(head).get("macro_f1")
    if after is None:
        return f"no macro F1 to report: {_unscored('head', head)}"
    if before is None:
        return f"macro F1 {after:.3f}; nothing to compare with, {_unscored('base', base)}"
    scores = f"macro F1 {before:.3f} → {after:.3f}"
    if comparison is None:
        return f"{scores}: not compared, {_why_not(base, head)}"
    if comparison.same:
        return f"{scores}: unchanged, the same prediction for every image"
    interval = comparison.intervals.get("macro_f1")
    if interval is None:
        return f"{scores} ({signed(after - before, 3)}): not judged, too much to resample"
    change = f"{signed(after - before, 3)}, 95 % interval {_bounds(interval, 3)}"
    return f"{scores} ({change}): {_judged(interval, 'no difference beyond noise', ', more than noise')}"


def score_table(base: Side, head: Side, comparison: Comparison | None) -> str:
    """Scores of both sides; differences only where both scored the same images."""
    before, after = values(base), values(head)
    # The known scores in their own order, then whatever else evaluate.json holds.
    left_out = {INT8} if _left_out(base) or _left_out(head) else set()
    names = [name for name in LABELS if name in before.keys() | after.keys() | left_out]
    names += sorted((before.keys() | after.keys()) - set(LABELS))
    intervals = comparison.intervals if comparison and not comparison.same else {}
    apart = left_out | ({CORRUPTED} if _severities(base) != _severities(head) else set())
    rows = []
    for name in names:
        old, new, interval = before.get(name), after.get(name), intervals.get(name)
        comparable = comparison is not None and old is not None and new is not None and name not in apart
        rows.append(
            [
                LABELS.get(name) or code(name),
                "left out" if name == INT8 and _left_out(base) else _figure(old),
                "left out" if name == INT8 and _left_out(head) else _figure(new),
                signed(new - old, 4) if comparable else "–",
                _bounds(interval, 4) if interval else "",
                _judged(interval, "within noise") if interval else "",
            ]
        )
    if not rows:
        return ""
    return listing(["", "base", "head", "difference", "95 % interval", ""], rows, MOST_ROWS, "lrrrcl")


def significance(comparison: Comparison) -> str:
    """McNemar's test in a sentence, and how the intervals were made, where the predictions differ at all."""
    if comparison.same:
        return "Both sides predict the same for every image, so there is nothing to test."
    test = mcnemar(comparison.actual, comparison.base, comparison.head)
    intervals = (
        f"Intervals: paired bootstrap, {RESAMPLES:,} resamples of the validation images; what another seed would "
        "change is not in them."
    )
    if test.won + test.lost < FEWEST:
        intervals += " They reach to zero here, as so few images tell nothing for certain."
    if not comparison.intervals:
        intervals = "There are no intervals: so many images in so many classes would take minutes to resample."
    return (
        f"{counted(test.won, 'image')} newly right, {test.lost:,} newly wrong: McNemar's test gives "
        f"p = {test.p:.2g} ({test.method}). {intervals}"
    )


def score_notes(base: Side, head: Side) -> list[str]:
    """Doubts about the scores, one sentence each."""
    notes = []
    if base.predictions is not None and head.predictions is not None and set_difference(base, head):
        notes.append(
            f"The validation sets differ ({_set_words(base, head)}), so the scores stand side by side "
            "but are not compared."
        )
    if _severities(base) != _severities(head) and all(CORRUPTED in values(side) for side in (base, head)):
        notes.append(
            f"Images were corrupted with other severities (base {code(_severities(base))}, head "
            f"{code(_severities(head))}), so those means are not compared."
        )
    for label, side in (("base", base), ("head", head)):
        for name, own in own_scores(side).items():
            kept = number((side.scores or {}).get(name))
            if kept is not None and abs(kept - own) > DISAGREEMENT:
                notes.append(
                    f"In {label}, `metrics/evaluate.json` says {LABELS[name]} {kept:.4f}, but "
                    f"`plots/predictions.csv` gives {own:.4f}: they are not of the same run. The table shows "
                    "the latter."
                )
    return notes


def values(side: Side) -> dict[str, float]:
    """All scores of a side; those that the predictions give are worked out from them, a final model has none."""
    found = {}
    if side.final or side.scores is None:
        return own_scores(side)
    more = {CORRUPTED: (side.robustness or {}).get(CORRUPTED), INT8: (side.int8 or {}).get("macro_f1")}
    for name, value in (side.scores | more).items():
        nested = value.items() if isinstance(value, dict) and name != "f1" else ()
        for key, entry in [(name, value), *((f"{name}.{inner}", entry) for inner, entry in nested)]:
            if (figure := number(entry)) is not None:
                found[key] = figure
    return found | own_scores(side)


def _left_out(side: Side) -> bool:
    """Whether the model was not kept in int8, as it loses too much."""
    return side.int8 is not None and side.int8.get("kept") is False


def _severities(side: Side) -> str:
    return json.dumps((side.robustness or {}).get("severities"))


def _unscored(label: str, side: Side) -> str:
    return f"{label} is trained on validation too (final: true)" if side.final else f"{label} has no scores"


def _why_not(base: Side, head: Side) -> str:
    for label, side in (("base", base), ("head", head)):
        if side.predictions is None:
            return f"{label} has no predictions"
    return f"the validation sets differ ({_set_words(base, head)})"


def _set_words(base: Side, head: Side) -> str:
    return ", ".join(f"{counted(count, 'image')} {where}" for where, count in set_difference(base, head).items())


def _judged(interval: Interval, noise: str, beyond: str = "") -> str:
    if not interval.beyond_noise:
        return noise
    return ("better" if interval.low > 0 else "worse") + beyond


def _bounds(interval: Interval, digits: int) -> str:
    return f"{signed(interval.low, digits)} … {signed(interval.high, digits)}"


def _figure(value: float | None) -> str:
    if value is None:
        return "–"
    if value == int(value) and abs(value) > 1:
        return f"{value:,.6g}"
    return f"{value:.4f}" if abs(value) < 1e6 else f"{value:.4g}"
