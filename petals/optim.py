"""The optimiser, the course of its learning rate, and the averaged weights."""

import math

import torch
from torch import nn


def adamw(model: nn.Module, lr: float, weight_decay: float, head_lr: float = 1.0) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter, 2019) that decays matrices and kernels, but no bias and no norm.

    `model.head`, which is new, learns `head_lr` times as fast as the rest: each group has its `scale` of the rate.
    """
    parameters = [each for each in model.parameters() if each.requires_grad]
    head = {id(each) for each in model.head.parameters()} if head_lr != 1 else set()
    groups = [
        {"params": [each for each in parameters if (each.ndim > 1) == decayed and (id(each) in head) == new]}
        | {"weight_decay": weight_decay if decayed else 0.0, "scale": head_lr if new else 1.0}
        for new in (False, True)
        for decayed in (True, False)
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=lr, fused=True)


def warmup_cosine(step: int, steps: int, warmup: int) -> float:
    """The share of the peak learning rate at `step` of `steps`: a linear rise, then half a cosine to zero.

    >>> [round(warmup_cosine(step, 6, 2), 2) for step in range(6)]
    [0.5, 1.0, 1.0, 0.85, 0.5, 0.15]
    """
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


class AveragedWeights:
    """An exponential moving average of all floating-point state of a model, batch statistics included.

    In the first steps the horizon is shorter, so that the start is soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.source = [each for each in model.state_dict().values() if each.is_floating_point()]
        self.average = [each.clone() for each in self.source]

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.average, self.source, 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the model's weights and the average; call it twice to look and come back."""
        for mine, theirs in zip(self.average, self.source, strict=True):
            kept = mine.clone()
            mine.copy_(theirs)
            theirs.copy_(kept)
