"""Training curves: logged by DVCLive while the run goes, moved to their places when it ends."""

import shutil
from functools import cached_property
from pathlib import Path

from petals.files import STATE, remove, replacing
from petals.tables import write_json

SCRATCH = STATE / "live"


class Curves:
    """Logs values by epoch; `history` (one nested dict an epoch, those of a resumed run first) grows with them.

    Only with `writes` are there files: of several processes one has them. On leaving without an error, `metrics` is
    the JSON with the last training loss, `curves` a folder of TSV files.
    """

    def __init__(
        self, metrics: Path, curves: Path, history: list[dict[str, dict[str, float]]], writes: bool = True
    ) -> None:
        self.metrics, self.curves, self.history, self.writes = metrics, curves, history, writes

    def __enter__(self) -> "Curves":
        if not self.writes:
            return self
        remove(SCRATCH)
        for values in self.history:
            self.log(values)
        return self

    @cached_property
    def live(self):
        from dvclive import Live  # not before there is something to log, so that the first step need not wait for it

        # DVC already knows the run: Live must not write a dvc.yaml, an experiment or a report of its own.
        return Live(str(SCRATCH), dvcyaml=None, save_dvc_exp=False, report=None, monitor_system=False)

    def add(self, values: dict[str, dict[str, float]]) -> None:
        values = {
            group: {name: float(f"{value:.6g}") for name, value in named.items()} for group, named in values.items()
        }
        self.history.append(values)
        self.log(values)

    def log(self, values: dict[str, dict[str, float]]) -> None:
        if not self.writes:
            return
        for group, named in values.items():
            for name, value in named.items():
                self.live.log_metric(f"{group}/{name}", value)
        self.live.next_step()

    def __exit__(self, kind, error, traceback) -> None:
        if "live" in vars(self):
            self.live.end()
        if not self.writes:
            return
        if kind is None:
            # The rest of the history is evaluate's to say, or no score.
            write_json(self.metrics, {"train": {"loss": self.history[-1]["train"]["loss"]}})
            with replacing(self.curves) as folder:
                shutil.copytree(SCRATCH / "plots" / "metrics", folder)
        remove(SCRATCH)
