"""The verdict and the table of scores: what a reviewer reads first, and maybe alone."""

import json

from petals.report.comparison import Comparison, own_scores, set_difference
from petals.report.markdown import code, counted, listing, signed
from petals.report.sides import Side, number
from petals.report.statistics import RESAMPLES, Interval, mcnemar

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
    """One line: macro F1 of both sides and whether it moved by more than the choice of images explains."""
    before, after = values(base).get("macro_f1"), values(head).get("macro_f1")
    if after is None:
        return f"no macro F1 to report: {_unscored('head', head)}"
    if before is None:
        return f"macro F1 {after:.3f}; nothing to compare with, {_unscored('base', base)}"
    scores = f"macro F1 {before:.3f} → {after:.3f}"
    if comparison is None:
        return f"{scores}: not compared, {_why_not(base, head)}"
    if not comparison.whole:
        before, after = comparison.scores["macro_f1"]
        images = counted(len(comparison.ids), "image")
        scores = f"macro F1 {before:.3f} → {after:.3f} on the {images} that both have"
    if comparison.same:
        return f"{scores}: unchanged, the same prediction for every image"
    interval = comparison.intervals.get("macro_f1")
    if interval is None:
        return f"{scores} ({signed(after - before, 3)}): not judged, too much to resample"
    bounds = _bounds(interval, 4 if interval.beyond_noise and min(map(abs, interval.bounds)) < 0.001 else 3)
    change = f"{signed(after - before, 3)}, 95 % interval {bounds}"
    return f"{scores} ({change}): {_judged(interval, 'not told apart from noise', ', more than other images explain')}"


def score_table(base: Side, head: Side, comparison: Comparison | None) -> str:
    """Scores of both sides; differences only where both scored the same images."""
    before, after = values(base), values(head)
    # The known scores in their own order, then whatever else evaluate.json holds.
    left_out = {INT8} if _left_out(base) or _left_out(head) else set()
    names = [name for name in LABELS if name in before.keys() | after.keys() | left_out]
    names += sorted((before.keys() | after.keys()) - set(LABELS))
    intervals = dict(comparison.intervals) if comparison else {}
    if comparison and comparison.same:
        intervals = {name: each for name, each in intervals.items() if name == "nll"}
    apart = left_out | ({CORRUPTED} if _corruptions(base) != _corruptions(head) else set())
    shared = comparison.differences if comparison and not comparison.whole else {}
    if shared:
        apart = set(names) - shared.keys()
    rows = []
    for name in names:
        old, new, interval = before.get(name), after.get(name), intervals.get(name)
        comparable = comparison is not None and old is not None and new is not None and name not in apart
        rows.append(
            [
                LABELS.get(name) or code(name),
                "left out" if name == INT8 and _left_out(base) else _figure(old),
                "left out" if name == INT8 and _left_out(head) else _figure(new),
                signed(shared.get(name, new - old), 4) if comparable else "–",
                _bounds(interval, 4) if interval and comparable else "",
                _judged(interval, "within noise", lower=name == "nll") if interval and comparable else "",
            ]
        )
    if not rows:
        return ""
    return listing(["", "base", "head", "difference", "95 % interval", ""], rows, MOST_ROWS, "lrrrcl")


def significance(comparison: Comparison) -> str:
    """McNemar's test in a sentence, and how the intervals were made, where the predictions differ at all."""
    intervals = (
        f"Intervals: paired bootstrap, {RESAMPLES:,} resamples of the validation images; what another seed would "
        "change is not in them."
    )
    if any(each.widened for each in comparison.intervals.values()):
        intervals += " One that ends at zero was widened, as chance alone gives as much in one case of twenty or more."
    if comparison.same:
        shared = "" if comparison.whole else " that both have"
        nothing = f"Both sides predict the same for every image{shared}, so there is nothing to test."
        return f"{nothing} {intervals}" if "nll" in comparison.intervals else nothing
    test = mcnemar(comparison.actual, comparison.base, comparison.head)
    if "macro_f1" not in comparison.intervals:
        intervals = (
            "There are no intervals of macro F1 and accuracy: so many images in so many classes would take minutes "
            "to resample."
        )
    return (
        f"{counted(test.won, 'image')} newly right, {test.lost:,} newly wrong: McNemar's test gives "
        f"p = {test.p:.2g} ({test.method}). {intervals}"
    )


def score_notes(base: Side, head: Side, comparison: Comparison | None) -> list[str]:
    """Doubts about the scores, one sentence each."""
    notes = []
    if base.predictions is not None and head.predictions is not None and set_difference(base, head):
        shared = "but are not compared" if comparison is None else "and the differences are those of what both have"
        notes.append(
            f"The validation sets differ ({_set_words(base, head)}), so the scores stand side by side {shared}."
        )
    if _corruptions(base) != _corruptions(head) and all(CORRUPTED in values(side) for side in (base, head)):
        ways = ", ".join(f"{label} {code(_corruptions(side))}" for label, side in (("base", base), ("head", head)))
        notes.append(f"Images were corrupted in other ways ({ways}), so those means are not compared.")
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


def _corruptions(side: Side) -> str:
    """How the images were corrupted: at which severities, and by what."""
    found = (side.robustness or {}).get("by_corruption")
    kinds = [each.get("corruption") for each in found if isinstance(each, dict)] if isinstance(found, list) else []
    return f"{json.dumps((side.robustness or {}).get('severities'))} {', '.join(sorted(map(str, kinds)))}".strip()


def _unscored(label: str, side: Side) -> str:
    return f"{label} is trained on validation too (final: true)" if side.final else f"{label} has no scores"


def _why_not(base: Side, head: Side) -> str:
    for label, side in (("base", base), ("head", head)):
        if side.predictions is None:
            return f"{label} has no predictions"
    return f"the validation sets differ ({_set_words(base, head)})"


def _set_words(base: Side, head: Side) -> str:
    return ", ".join(f"{counted(count, 'image')} {where}" for where, count in set_difference(base, head).items())


def _judged(interval: Interval, noise: str, beyond: str = "", lower: bool = False) -> str:
    """`noise`, or which side is ahead; `lower` values are better."""
    if not interval.beyond_noise:
        return noise
    return ("better" if (interval.low > 0) != lower else "worse") + beyond


def _bounds(interval: Interval, digits: int) -> str:
    return f"{signed(interval.low, digits)} … {signed(interval.high, digits)}"


def _figure(value: float | None) -> str:
    if value is None:
        return "–"
    if value == int(value) and abs(value) > 1:
        return f"{value:,.6g}"
    return f"{value:.4f}" if abs(value) < 1e6 else f"{value:.4g}"
