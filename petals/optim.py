"""The optimiser, the course of its learning rate, and the averaged weights."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim.adamw import adamw as adamw_step

NO_DECAY = ("biases", "positions", "cls_token")  # ends of names


class AdamW:
    """AdamW (Loshchilov & Hutter, 2019) by the fused kernel of torch.optim.AdamW, without the class around it.

    That class loads torch's compiler, which takes 1.4 s and 70 MB. `param_groups` are dictionaries with `params`,
    `lr` and `weight_decay`; `state` holds the slots of each parameter that has had a gradient, as torch's holds them.
    """

    BETAS, EPS = (0.9, 0.999), 1e-8

    def __init__(self, groups: list[dict[str, Any]], lr: float) -> None:
        self.param_groups = [{"lr": lr} | group for group in groups]
        self.state: dict[nn.Parameter, dict[str, torch.Tensor]] = {}

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            learning = [each for each in group["params"] if each.grad is not None]
            slots = [self.state.get(each) or self.start(each) for each in learning]
            adamw_step(
                learning,
                [each.grad for each in learning],
                *([slot[name] for slot in slots] for name in ("exp_avg", "exp_avg_sq")),
                [],
                [slot["step"] for slot in slots],
                fused=True,
                amsgrad=False,
                maximize=False,
                beta1=self.BETAS[0],
                beta2=self.BETAS[1],
                eps=self.EPS,
                lr=group["lr"],
                weight_decay=group["weight_decay"],
            )

    def start(self, parameter: nn.Parameter) -> dict[str, torch.Tensor]:
        self.state[parameter] = {
            "step": torch.zeros((), device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
        return self.state[parameter]


def adamw(model: nn.Module, lr: float, weight_decay: float, head_lr: float = 1.0) -> AdamW:
    """AdamW that decays matrices and kernels, but no bias, no norm, and nothing that a ViT adds to its tokens.

    Some of these are matrices too: the biases of TinyViT's attention, and the embeddings of positions.

    `model.head`, which is new, learns `head_lr` times as fast as the rest: each group has its `scale` of the rate.
    """
    parameters = {name: each for name, each in model.named_parameters() if each.requires_grad}
    decaying = {id(each) for name, each in parameters.items() if each.ndim > 1 and not name.endswith(NO_DECAY)}
    head = {id(each) for each in model.head.parameters()} if head_lr != 1 else set()
    groups = [
        {"params": [each for each in parameters.values() if (id(each) in decaying, id(each) in head) == (decayed, new)]}
        | {"weight_decay": weight_decay if decayed else 0.0, "scale": head_lr if new else 1.0}
        for new in (False, True)
        for decayed in (True, False)
    ]
    return AdamW([group for group in groups if group["params"]], lr)


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

    The decay rises from 0.1 to its limit, as (1 + step) / (10 + step), so that the first weights soon drop out.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.source = [each for each in model.state_dict().values() if each.is_floating_point()]
        self.average = [each.clone() for each in self.source]

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.average, self.source, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """While active, the model has the averaged weights; then its own again."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    @torch.no_grad()
    def swap(self) -> None:
        for mine, theirs in zip(self.average, self.source, strict=True):
            kept = mine.clone()
            mine.copy_(theirs)
            theirs.copy_(kept)
