"""What training does with the validation split: score it, and at the end fit a temperature to it."""

from typing import NamedTuple

import numpy as np
from torch import nn

from petals.calibration import COLDEST, HOTTEST, class_offsets, fit_temperature, rescale
from petals.distributed import Group
from petals.errors import PetalsError
from petals.models import Classifier
from petals.optim import AveragedWeights
from petals.packed import PackedSplit
from petals.scores import macro_f1, negative_log_likelihood

FINAL = (
    "final: train holds val too, so nothing is scored, and the temperature stays 1, at which the model is "
    "underconfident; give that of the same settings with final: false, such as -S temperature=0.35"
)


def validate(net: nn.Module, average: AveragedWeights, split: PackedSplit, group: Group, at: str) -> dict[str, float]:
    """Score the averaged weights on the validation split: a curve to look at, which decides nothing.

    Raises PetalsError, which says `at`, where a score is not finite.
    """
    with average.applied():
        scores = group.predict(net, split)
    if not np.isfinite(scores).all():
        raise PetalsError(f"the scores on val are no longer finite at {at}: lower lr; the last checkpoint stays")
    return {
        "macro_f1": macro_f1(split.labels, scores.argmax(1)),
        "nll": negative_log_likelihood(split.labels, scores),
    }


class Calibration(NamedTuple):
    """`offsets` (float64, classes) are added to the logits, which `temperature` then divides; `note` is for people."""

    offsets: np.ndarray
    temperature: float
    note: str


def calibrate(
    net: Classifier, train: PackedSplit, val: PackedSplit, group: Group, adjust: float, wanted: float | str
) -> Calibration:
    """Find what raises the answers of `net` for rare classes by `adjust`, and its temperature.

    That is the number `wanted`, or, where it is "fit", fitted to `val`: once to adjust by, whatever is wanted, so that
    no number changes which class is named; and once more to the adjusted answers. Where `train` holds the images of
    `val` too, nothing unseen is left to fit it to: the adjustment goes by the number wanted, or else by the temperature
    of `train`, and that of `net` stays 1.
    """
    offsets = class_offsets(np.bincount(train.labels, minlength=len(train.classes)), adjust)
    first, temperature, note = 1.0, 1.0, FINAL
    if train.final and wanted != "fit":
        first = wanted
    elif offsets.any() or not train.final:
        known = train if train.final else val
        scores = group.predict(net, known)
        first = fit_temperature(known.labels, scores)
    if wanted != "fit":
        temperature, note = wanted, f"temperature {wanted:g}, as params.yaml has it"
    elif not train.final:
        temperature = fit_temperature(val.labels, rescale(scores, 1.0, first * offsets))
        note = f"temperature {temperature:.3f}, fitted to val"
        if np.isclose(temperature, COLDEST, rtol=0.01):
            note += ": at its bound, as val has too few images, or too few mistakes, to fit it"
        elif np.isclose(temperature, HOTTEST, rtol=0.01):
            note += ": at its bound, as the answers say little: the model has hardly learnt, or labels of val are wrong"
    return Calibration(first * offsets, temperature, note)
