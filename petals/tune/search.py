"""The search itself: trials that come and go, and what becomes of each."""

import math
import re
import signal
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import optuna
from optuna.trial import Trial, TrialState

from petals import params
from petals.errors import PetalsError
from petals.seeding import seed_for
from petals.tune.experiments import Curve, Experiments
from petals.tune.space import CURVES, Search, Settings, fingerprint
from petals.tune.study import complete, counted, names

POLL = 1.0  # s between two looks
REMIND = 10.0  # s after which a stage is told again to stop, or a queue that stands still gets its workers again
KILLED = "its worker is gone"
LOSSES = 3  # workers of the same settings that are killed: then these have failed, by their need of memory perhaps
HOPELESS = 3  # trials that fail, and none that did not, end a search


@dataclass
class Running:
    """A trial under way: one experiment a seed, one after the other."""

    trial: Trial
    settings: Settings
    names: list[str]
    scores: list[float] = field(default_factory=list)
    hopeless: bool = False  # its curve is below the median
    told: float = -math.inf  # when its stage was told to stop
    missed: int = 0  # looks that did not find it

    @property
    def name(self) -> str:
        """The experiment that is under way."""
        return self.names[len(self.scores)]


class Stopped(Exception):
    """A signal came; the trials that ran are left for the next start."""

    def __init__(self, signum: int) -> None:
        self.signum = signum


class Tuner:
    """Runs trials until the study has enough of them.

    Proposals come from (sampler_seed, how many were made before, what these gave): with one job a search that was
    stopped or killed makes the proposals that it would have made, unless a trial that should have been given up came to
    its end meanwhile, and to the best score. With more, the order in which trials end counts.
    """

    def __init__(
        self, study: optuna.Study, search: Search, values: Settings, jobs: int, say: Callable[[str], None]
    ) -> None:
        self.study, self.search, self.values, self.jobs, self.say = study, search, values, jobs, say
        self.experiments = Experiments()
        self.running: list[Running] = []
        self.requested = 0
        self.failed_before: set[int] = set()  # in former starts, whose causes may be mended
        self.started = -math.inf
        self.curve_missed = False

    def run(self, trials: int, progress: Callable[[int], object]) -> None:
        """Go on until `trials` have ended. Raises PetalsError where that makes no sense, Stopped upon a signal."""
        former = {each: signal.signal(each, self.request) for each in (signal.SIGINT, signal.SIGTERM)}
        try:
            self.begin()
            self.failed_before = {each.number for each in counted(self.study) if each.state == TrialState.FAIL}
            while True:
                while len(self.running) < self.jobs and len(counted(self.study)) < trials and not self.all_fail():
                    self.propose()
                progress(sum(each.state.is_finished() for each in counted(self.study)))
                if not self.running:
                    break
                time.sleep(POLL)
                if self.requested:
                    self.stop()
                    raise Stopped(self.requested)
                self.watch()
        finally:
            for each, handler in former.items():
                signal.signal(each, handler)
        if not any(each.state == TrialState.COMPLETE for each in counted(self.study)):
            failed = [each for each in counted(self.study) if each.state == TrialState.FAIL]
            why = f", the last of them: {failed[-1].user_attrs['error']}" if failed else ""
            raise PetalsError(f"no trial of {len(counted(self.study))} came to a score{why}")

    def request(self, signum: int, frame: object) -> None:
        self.requested = signum

    def all_fail(self) -> bool:
        trials = [each for each in counted(self.study) if each.number not in self.failed_before]
        ended = [each.state for each in trials if each.state.is_finished()]
        return len(ended) >= HOPELESS and all(state == TrialState.FAIL for state in ended)

    # Beginning, and taking up what a killed search has left

    def begin(self) -> None:
        now = fingerprint(self.search, self.values)
        name, kept = self.study.study_name, self.study.user_attrs.get("fingerprint")
        if kept is None:
            ours = re.compile(rf"{name}-\d+(-seed\d+)?")
            clash = sorted(each for each in self.experiments.names() if ours.fullmatch(each))
            if clash:
                raise PetalsError(
                    f"the experiment {clash[0]} is of another search, whose study is gone: choose another --name"
                )
            outside = self.search.outside(self.values)
            if outside:
                said = ", ".join(f"{knob} {self.values[knob]}" for knob in outside)
                self.say(f"the settings to start from are outside the space ({said}), so they are not tried")
            else:
                self.study.enqueue_trial({knob: self.values[knob] for knob in self.search.space}, skip_if_exists=True)
            self.study.set_user_attr("fingerprint", now)
        elif kept != now:
            raise PetalsError(
                f"tune.yaml, dvc.yaml, the code, the data or a knob that is not searched is no longer what the search "
                f"{name!r} began with, so its trials could not be compared: put it back, or choose another --name"
            )
        known, seen = self.experiments.names(), self.experiments.look()
        present = {*seen.waiting, *seen.active, *seen.done}
        for frozen in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            trial = Trial(self.study, frozen._trial_id)
            if "settings" not in frozen.user_attrs:  # a proposal half made; it is made anew
                self.put_back(trial, True, frozen.system_attrs.get("fixed_params"))
                continue
            if "lost" in frozen.user_attrs:
                self.put_back(trial, KILLED, frozen.params)
                continue
            run = self.make(trial, frozen.user_attrs["settings"])
            if len(run.scores) == len(run.names):  # it was killed before it could say so
                self.settle(run)
                continue
            run.hopeless = not run.scores and trial.should_prune()
            stopped = frozen.user_attrs.get("stopped") and run.name not in present
            if run.name in known and not stopped:
                self.say(f"{run.name}: taken up again")
            else:
                self.enqueue(run)
            self.running.append(run)

    def sampler(self, number: int) -> optuna.samplers.TPESampler:
        before = sum(each.number < number for each in counted(self.study))
        seed = seed_for(self.search.sampler_seed, "proposal", before) % 2**32
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=self.search.startup)

    def propose(self) -> None:
        self.unchanged()
        waiting = self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        number = waiting[0].number if waiting else len(self.study.get_trials(deepcopy=False))
        self.study.sampler = self.sampler(number)
        trial = self.study.ask()
        settings = self.search.suggest(trial)
        # What to start from is tried as it was given, unrounded.
        settings |= {knob: self.values[knob] for knob in settings if trial.params[knob] == self.values[knob]}
        trial.set_user_attr("settings", settings)
        run = self.make(trial, settings)
        try:
            params.check(self.values | run.settings, "params.yaml")  # knobs that do not go together
        except PetalsError as error:
            self.fail(run, str(error))
            return
        self.enqueue(run)
        self.running.append(run)

    def unchanged(self) -> None:
        """Raise PetalsError where the code has been edited: the next trial would be one of something else."""
        if fingerprint(self.search, self.values) != self.study.user_attrs["fingerprint"]:
            raise PetalsError("dvc.yaml, the code or the data changed while the search ran: put it back and go on")

    def make(self, trial: Trial, settings: Settings) -> Running:
        return Running(
            trial, settings, names(self.study, self.search, trial.number), trial.user_attrs.get("scores", [])
        )

    def enqueue(self, run: Running) -> None:
        run.missed = 0
        seed = self.search.seeds[len(run.scores)]
        self.experiments.queue(run.name, self.values | run.settings | {"seed": seed})
        run.trial.set_user_attr("stopped", False)
        self.experiments.start(self.jobs)
        self.started = time.monotonic()

    # What becomes of them

    def watch(self) -> None:
        seen = self.experiments.look()
        for run in list(self.running):
            if run.name in seen.done:
                self.ended(run, seen.done[run.name])
            elif run.name in seen.active:
                self.follow(run, seen.active[run.name])
            elif run.name in seen.waiting:
                run.missed = 0
                if time.monotonic() - self.started > REMIND:
                    self.experiments.start(self.jobs)
                    self.started = time.monotonic()
            elif run.missed == 0:
                run.missed = 1  # it may be on its way from one to the other
            elif run.hopeless:
                self.prune(run)
            else:
                self.fail(run, self.experiments.error(run.name))

    def follow(self, run: Running, rev: str) -> None:
        run.missed = 0
        if not self.experiments.running(rev):
            self.lose(run)  # before DVC is told, which takes seconds in which the search may be killed
            self.experiments.give_up(run.name, rev, waiting=False)
            return
        if self.search.curve and not run.scores:
            self.report(run, self.experiments.curve(rev, self.search.curve))
        if run.hopeless and time.monotonic() - run.told > REMIND:
            self.experiments.stop(rev)
            run.told = time.monotonic()

    def report(self, run: Running, curve: Curve) -> None:
        """Tell the study of the points of the curve that are new, up to that at which it is hopeless."""
        known = self.study.get_trials(deepcopy=False)[run.trial.number].intermediate_values
        for step in sorted(curve.keys() - known.keys()):
            if run.hopeless:
                break
            run.trial.report(curve[step], step)
            run.hopeless = run.trial.should_prune()

    def ended(self, run: Running, commit: str) -> None:
        try:
            score, curve = self.experiments.result(commit, self.search.objective, self.search.curve)
            if not math.isfinite(score):
                raise PetalsError(f"{self.search.objective} is {score}")
        except PetalsError as error:
            self.fail(run, str(error))
            return
        if not run.scores:
            if self.search.curve and not curve and not self.curve_missed:
                self.curve_missed = True
                self.say(f"there is no curve {self.search.curve} in {CURVES}, so no trial is given up before its end")
            self.report(run, curve)
            # Whether it was stopped in time must not change what is proposed next.
            if run.hopeless and not self.best_so_far(score):
                self.prune(run)
                return
            run.hopeless = False
        run.scores.append(score)
        run.trial.set_user_attr("scores", run.scores)
        if len(run.scores) == len(run.names):
            self.settle(run)
        elif self.requested:
            self.leave(run, f"stopped after {len(run.scores)} of {len(run.names)} seeds")
        else:
            self.enqueue(run)

    def settle(self, run: Running) -> None:
        mean = statistics.mean(run.scores)
        self.study.tell(run.trial, mean)
        self.leave(run, f"{self.search.objective.partition(':')[2]} {mean:.4f}")

    def best_so_far(self, score: float) -> bool:
        sign = 1 if self.search.direction == "maximize" else -1
        return all(sign * score > sign * each.value for each in complete(self.study))

    def prune(self, run: Running) -> None:
        self.study.tell(run.trial, state=TrialState.PRUNED)
        last = max(self.study.get_trials(deepcopy=False)[run.trial.number].intermediate_values, default=0)
        self.leave(run, f"given up after epoch {last + 1}, below the median of the others")

    def fail(self, run: Running, error: str) -> None:
        run.trial.set_user_attr("error", error)
        self.study.tell(run.trial, state=TrialState.FAIL)
        self.leave(run, f"failed: {error}")

    def lose(self, run: Running) -> None:
        """Put back a trial whose worker was killed: its settings are tried again, under another name.

        Where that is the third worker of the same settings to be killed, it has failed.
        """
        trials = self.study.get_trials(deepcopy=False)
        before = sum(each.user_attrs.get("lost") == KILLED and each.params == run.trial.params for each in trials)
        if before + 1 >= LOSSES:
            self.fail(run, f"{KILLED}, {LOSSES} times")
            return
        self.put_back(run.trial, KILLED, run.trial.params)
        self.leave(run, f"{KILLED}; its settings are tried again")

    def put_back(self, trial: Trial, why: bool | str, settings: dict | None) -> None:
        """End a trial that was lost, and queue its settings, if there are any; whole again if it is killed within."""
        trial.set_user_attr("lost", why)
        waiting = self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        if settings and all(each.system_attrs["fixed_params"] != settings for each in waiting):
            self.study.enqueue_trial(settings)
        self.study.tell(trial, state=TrialState.FAIL)

    def leave(self, run: Running, said: str) -> None:
        if run in self.running:
            self.running.remove(run)
        told = ", ".join(f"{knob} {value}" for knob, value in run.settings.items())
        self.say(f"{names(self.study, self.search, run.trial.number)[0]}: {said} ({told})")

    def stop(self) -> None:
        """End the experiments of this search, for `begin` to run again; another signal leaves at once."""
        self.say(f"stopping {len(self.running)} under way")
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.default_int_handler)
        seen, told = self.experiments.look(), {}
        while self.running:
            for run in list(self.running):
                if run.name in seen.waiting:
                    self.experiments.give_up(run.name, seen.waiting[run.name], waiting=True)
                elif run.name in seen.done:
                    self.ended(run, seen.done[run.name])
                elif run.name not in seen.active or not self.experiments.running(seen.active[run.name]):
                    run.trial.set_user_attr("stopped", True)
                    self.leave(run, "stopped")
                elif time.monotonic() - told.get(run.name, -math.inf) > REMIND:
                    self.experiments.stop(seen.active[run.name])
                    told[run.name] = time.monotonic()
            time.sleep(POLL if self.running else 0)
            seen = self.experiments.look()
