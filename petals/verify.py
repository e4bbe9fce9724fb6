"""Whether a clean clone of HEAD gives the outputs that dvc.lock names: python -m petals.verify."""

import json
import math
import os
import sys
import tempfile
from pathlib import Path

import click

from petals import lockgate, machine
from petals.commands import Command
from petals.errors import PetalsError
from petals.git import git
from petals.inputs import inputs
from petals.isolation import dvc, isolate
from petals.params import read_mapping

SCORES, CARD = Path("metrics/evaluate.json"), Path("metrics/prepare.json")
NAMES = ("macro_f1", "accuracy", "top5_accuracy", "nll")


def verify(checkout: Path, clone: Path) -> bool:
    """Clone HEAD of `checkout` to `clone`, run its pipeline from nothing, and tell what came out.

    True where all outputs have the recorded bytes or, on another kind of machine than the recorded one, where the
    scores are the recorded ones within the tolerance.
    Raises PetalsError where HEAD cannot be run.
    """
    git("clone", "--quiet", "--no-hardlinks", str(checkout), str(clone))
    environment = isolate(clone)
    recorded, scores = read_outs(clone), read_scores(clone)
    here, kept = machine.description(clone), machine.read_record(clone)
    click.echo("this machine:")
    for name, value in here.items():
        click.echo(f"  {name:<14}{value}")
    for difference in machine.compare(clone):
        click.echo(f"  ! {difference}")
    for problem in lockgate.problems(clone):
        click.echo(f"  ! dvc.lock of HEAD is behind: {problem}")
    fetch_data(checkout, clone, environment)
    of_lock = kept and kept.dvc_lock_md5 == machine.lock_hash(clone)
    (clone / "dvc.lock").unlink()  # in which DVC would leave what no stage makes any more

    if code := dvc(clone, environment, "repro", "--force", "--no-run-cache").returncode:
        raise PetalsError(f"dvc repro ended with exit code {code} in a clean clone of HEAD; what it said stands above")
    made = read_outs(clone)
    click.echo("\n" + table(recorded, made))
    if made == recorded:
        click.echo(f"\nSame bytes: all {len(made)} outputs are those that dvc.lock of HEAD names.")
        return True
    if kept and kept.fingerprint == here:
        click.echo(
            "\nNot the same bytes, though this is the kind of machine in machine.json: something is not repeatable"
            + ("." if of_lock else ", or dvc.lock has changed since and is of another machine.")
        )
        return False
    return compare_scores(scores, read_scores(clone))


def read_outs(root: Path) -> dict[str, str]:
    """The hash of each output of each stage in `root`/dvc.lock, by path."""
    lock = root / "dvc.lock"
    if not lock.is_file():
        raise PetalsError("HEAD has no dvc.lock, so nothing to verify; dvc repro, then commit it")
    try:
        stages = read_mapping(lock)["stages"]
        return {out["path"]: out["md5"] for stage in stages.values() for out in stage.get("outs", [])}
    except (AttributeError, KeyError, TypeError, PetalsError):
        raise PetalsError("dvc.lock of HEAD cannot be read; dvc repro, then commit it") from None


def read_scores(root: Path) -> dict[str, float]:
    """The scores that evaluate wrote, and the number of `images` that they come from; empty where it wrote none.

    So it is after `final: true`: nothing unseen was left to score.
    """
    try:
        scores = json.loads((root / SCORES).read_text(encoding="utf-8"))
        card = json.loads((root / CARD).read_text(encoding="utf-8"))
        return {name: float(scores[name]) for name in NAMES} | {"images": float(card["images"]["val"])}
    except (OSError, KeyError, TypeError, ValueError):
        return {}


def bounds(name: str, recorded: float, images: float) -> tuple[float, float]:
    """Between which values a score of `images` images counts as the `recorded` one.

    Last bits grow in training until two models differ like two draws of one recipe. A share measured on n images
    has a standard error of at most 1 / (2 √n), so the difference of two has 1 / √(2n); 2.8 times as much is allowed.
    A short training (8 epochs at 64 pixels) with 1, 2, 3 and 4 threads, which differ in last bits alone, gave
    macro F1 between 0.40 and 0.50 on 271 images, where 0.12 is allowed. The log-likelihood hangs on few images, and
    moves more: the sample's was 0.191 with one thread and 0.235 with two, and 0.151 with another seed. Half and twice
    as much are allowed.
    """
    if name == "nll":
        return recorded / 2, recorded * 2
    most = 2 / math.sqrt(max(images, 1))
    return recorded - most, recorded + most


def fetch_data(checkout: Path, clone: Path, environment: dict[str, str]) -> None:
    """Take the data and weights of params.yaml from the checkout's DVC cache, where they are not in git itself."""
    named = inputs(read_mapping(clone / "params.yaml")).values()
    missing = [str(path) for path in named if not (clone / path).exists()]
    if not missing:
        return
    cache = dvc(checkout, dict(os.environ), "cache", "dir", capture_output=True)
    if cache.returncode:
        raise PetalsError(f"dvc cache dir: {' '.join(cache.stderr.split())}")
    dvc(clone, environment, "remote", "add", "--quiet", "--local", "checkout", cache.stdout.strip())
    for path in missing:
        if dvc(clone, environment, "pull", "--quiet", "--remote", "checkout", path, capture_output=True).returncode:
            raise PetalsError(
                f"{path}: neither in git at HEAD nor in DVC's cache of this checkout;"
                f" dvc pull {path}, or dvc add {path} and commit {path}.dvc"
            )


def table(recorded: dict[str, str], made: dict[str, str]) -> str:
    paths = list(recorded | made)
    width = max(map(len, paths), default=0)
    lines = [f"{'output':<{width}}  {'recorded':<14}{'new':<14}same"]
    for path in paths:
        then, now = recorded.get(path, "none"), made.get(path, "none")
        lines.append(f"{path:<{width}}  {then[:12]:<14}{now[:12]:<14}{'yes' if then == now else 'NO'}")
    return "\n".join(lines)


def compare_scores(recorded: dict[str, float], made: dict[str, float]) -> bool:
    """Tell how far each score is from the recorded one; True where all are within the tolerance."""
    if not recorded and not made:
        click.echo(f"\nNot the same bytes, and no scores to compare: {SCORES} has none, as after final: true.")
        return False
    if not recorded or recorded.keys() != made.keys() or recorded["images"] != made["images"]:
        click.echo(f"\nNeither the same bytes nor the same scores: {SCORES} of HEAD and of the new run do not compare.")
        return False
    click.echo()
    agree = []
    for name in NAMES:
        then, now = recorded[name], made[name]
        low, high = bounds(name, then, recorded["images"])
        agree.append(low <= now <= high)
        verdict = "within" if agree[-1] else "NOT within"
        click.echo(f"{name:<16}recorded {then:.4f}, new {now:.4f}: {verdict} {low:.4f} … {high:.4f}")
    if all(agree):
        click.echo("\nSame scores, not the same bytes: some outputs differ, all scores are within the tolerance.")
    else:
        click.echo("\nNeither the same bytes nor the same scores.")
    return all(agree)


@click.command(cls=Command)
def main() -> None:
    """Run the pipeline of HEAD from nothing, in a clean clone with an empty cache, and compare with dvc.lock.

    \b
    Same bytes    every output has the hash in dvc.lock                              exit code 0
    Same scores   on another machine than that of machine.json: macro F1, accuracy
                  and top-5 differ by 2 / √images at most, the log-likelihood is
                  between half and twice as much                                     exit code 0
    Neither                                                                          exit code 1

    Processors differ in the last bits of floating point, so the same scores are what another kind of
    machine can give; machine.json says which one dvc.lock was made on (make record writes it). Data that is
    not in git comes from this checkout's DVC cache, in the version of HEAD: dvc pull it first.
    """
    checkout = Path(git("rev-parse", "--show-toplevel").strip())
    head = git("rev-parse", "--short", "HEAD").strip()
    if changes := git("status", "--porcelain").splitlines():
        click.echo(f"{len(changes)} files with uncommitted changes are left out: HEAD is what is verified")
    click.echo(f"verifying {head}")
    with tempfile.TemporaryDirectory(prefix="petals-verify-", ignore_cleanup_errors=True) as folder:
        same = verify(checkout, Path(folder) / "clone")
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main(prog_name="python -m petals.verify")
