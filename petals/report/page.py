"""The whole page, in the order of importance, fitted into what a comment may hold."""

from dataclasses import dataclass

from petals.report import changes, classes, scores, staleness
from petals.report.comparison import Comparison, compare
from petals.report.curves import training_curves
from petals.report.markdown import Section, code, counted
from petals.report.revisions import Revision, commits_missing
from petals.report.sides import Side, read_side
from petals.report.statistics import Interval

MOST_CHARACTERS = 60_000  # GitHub takes 65,536; the rest is left for what posts the comment


@dataclass(frozen=True)
class Report:
    """The markdown, and the interval of macro F1's difference where there is one."""

    markdown: str
    interval: Interval | None


def report(base: Revision, head: Revision) -> Report:
    """Compare the runs at two revisions."""
    before, after = read_side(base), read_side(head)
    comparison = compare(before, after)
    top = _top(before, after, comparison)
    found = [
        changes.settings(before, after),
        changes.stages(before, after),
        changes.model_size(before, after),
        changes.data_card(before, after),
        *([classes.movers(comparison), classes.pairs(comparison)] if comparison else []),
        training_curves(before, after),
        *([classes.images(comparison, before, after), classes.every_mover(comparison)] if comparison else []),
    ]
    markdown = fit(top, [section for section in found if section])
    return Report(markdown, comparison.intervals.get("macro_f1") if comparison else None)


def fit(top: str, sections: list[Section], most: int = MOST_CHARACTERS) -> str:
    """Join `top` and `sections`, leaving out the last of them until the page fits `most` characters."""
    for kept in range(len(sections), -1, -1):
        parts = [top, *map(str, sections[:kept])]
        if left_out := sections[kept:]:
            titles = "; ".join(section.title for section in left_out)
            parts.append(f"_Left out, as a comment holds no more: {titles}._\n")
        page = "\n".join(parts)
        if len(page) <= most:
            return page
    raise AssertionError("the top of the page is bounded by its rows, so it fits")


def _top(base: Side, head: Side, comparison: Comparison | None) -> str:
    stale = {label: staleness.note(label, side) for label, side in (("base", base), ("head", head))}
    doubt = "; but of a run before head's last changes" if stale["head"] else ""
    parts = [f"## {scores.verdict(base, head, comparison)}{doubt}", _sides(base, head, comparison)]
    parts += [scores.score_table(base, head, comparison)]
    if comparison:
        parts.append(scores.significance(comparison))
    notes = [*filter(None, stale.values()), *_notes(base, head), *scores.score_notes(base, head, comparison)]
    parts += ["\n".join(f"- {note}" for note in notes), changes.unchanged(base, head)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _sides(base: Side, head: Side, comparison: Comparison | None) -> str:
    line = f"Base is {_named(base.revision)}, head is {_named(head.revision)}"
    if comparison:
        shared = "" if comparison.whole else " that both have"
        return f"{line}; {counted(len(comparison.ids), 'validation image')}{shared}."
    return f"{line}."


def _named(revision: Revision) -> str:
    short = code(revision.commit[:10])
    return short if revision.commit.startswith(revision.name) else f"{code(revision.name)} ({short})"


def _notes(base: Side, head: Side) -> list[str]:
    notes = []
    if missing := commits_missing(base.revision, head.revision):
        notes.append(
            f"Base has {counted(missing, 'commit')} that head lacks, so some differences may be base's own. "
            "Merge base into head, or compare with their merge base (`git merge-base`)."
        )
    for label, side in (("base", base), ("head", head)):
        if side.problems:
            faults = ", ".join(f"{code(fault.path)} {fault.reason}" for fault in side.problems)
            notes.append(f"In {label}, {faults}.")
        if leaks := changes.leaks(side):
            notes.append(
                f"In {label}, {counted(leaks, 'pair')} of near-duplicates lie across train, val and test, so its "
                "scores may flatter; `drop_leaks: true` takes those in train out of it."
            )
    return notes
