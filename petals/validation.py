"""What training does with the validation split: score it, and at the end fit a temperature to it."""

import numpy as np
import torch
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
    """Score the averaged weights on the validation split: a curve to look at, which decides nothing."""
    average.swap()
    scores = group.predict(net, split)
    average.swap()
    if not np.isfinite(scores).all():
        raise PetalsError(f"the scores on val are no longer finite at {at}: lower lr; the last checkpoint stays")
    return {
        "macro_f1": macro_f1(split.labels, scores.argmax(1)),
        "nll": negative_log_likelihood(split.labels, scores),
    }


def calibrate(
    net: Classifier, train: PackedSplit, val: PackedSplit, group: Group, adjust: float, given: float | str
) -> str:
    """Raise the answers of `net` for rare classes in the bias of its head, and set its temperature.

    That is the number `given`, or, where it is "fit", fitted to `val`: once to adjust by, whatever is given, so that no
    number changes which class is named; and once more to the adjusted answers. Where `train` holds the images of `val`
    too, nothing unseen is left to fit it to: the adjustment goes by the number given, or else by the temperature of
    `train`, and that of `net` stays 1.
    Says in a line what was done.
    """
    offsets = class_offsets(np.bincount(train.labels, minlength=len(train.classes)), adjust)
    before, after, said = 1.0, 1.0, FINAL
    if train.final and given != "fit":
        before = given
    elif offsets.any() or not train.final:
        known = train if train.final else val
        scores = group.predict(net, known)
        before = fit_temperature(known.labels, scores)
    if given != "fit":
        after, said = given, f"temperature {given:g}, as params.yaml has it"
    elif not train.final:
        after = fit_temperature(val.labels, rescale(scores, 1.0, before * offsets))
        said = f"temperature {after:.3f}, fitted to val"
        if np.isclose(after, COLDEST, rtol=0.01):
            said += ": at its bound, as val has too few images, or too few mistakes, to fit it"
        elif np.isclose(after, HOTTEST, rtol=0.01):
            said += ": at its bound, as the model is sure of many wrong answers; look at the labels of val"
    net.head.bias.data += torch.from_numpy(before * offsets).to(net.head.bias)
    net.temperature.fill_(after)
    return said
