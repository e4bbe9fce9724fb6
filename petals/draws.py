"""Chance where a part of a batch is computed: drawn for all images, of which those concerned keep theirs."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

# By which torch draws, but for torch.rand and F.dropout, and attention's own dropout.
SOURCES = frozenset(
    getattr(owner, name)
    for owner, names in (
        (torch, "randn randperm randint rand_like randn_like randint_like bernoulli multinomial normal poisson"),
        (Tensor, "uniform_ normal_ random_ bernoulli bernoulli_ exponential_ multinomial"),
        (Tensor, "cauchy_ geometric_ log_normal_"),
        (torch, "dropout"),
        (F, "alpha_dropout feature_alpha_dropout dropout1d dropout2d dropout3d rrelu"),
    )
    for name in names.split()
)


class DrawsOfWholeBatch(TorchFunctionMode):
    """While active, a network that sees `rows` of a batch of `count` images draws as if it saw the batch.

    So dropout and stochastic depth hit an image alike, whoever computes it. The first dimension of whatever draws must
    be the images; any other source of chance is refused with RuntimeError. Kornia's augmentations draw so as well.
    """

    def __init__(self, rows: slice | Tensor, count: int) -> None:
        super().__init__()
        self.rows, self.count = rows, count
        self.here = len(rows) if isinstance(rows, Tensor) else len(range(count)[rows])

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.rand:
            size = args[0] if isinstance(args[0], Sequence) else args
            return torch.rand(self.whole(size), **kwargs)[self.rows]
        if func is F.dropout:
            return self.dropout(*args, **kwargs)
        if func is Tensor.bernoulli_:
            drawn, *chance = args
            return drawn.copy_(drawn.new_empty(self.whole(drawn.shape)).bernoulli_(*chance, **kwargs)[self.rows])
        dropped = (*args[4:5], kwargs.get("dropout_p", 0.0))[0] if func is F.scaled_dot_product_attention else 0.0
        if func in SOURCES or dropped:
            raise RuntimeError(f"a network drew from {func.__name__}, which knows nothing of parts of a batch")
        return func(*args, **kwargs)

    def dropout(self, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training or not p:
            return x
        return x * F.dropout(x.new_ones(self.whole(x.shape)), p)[self.rows]

    def whole(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape that this part's `shape` has for the batch."""
        if shape[0] != self.here:
            raise RuntimeError(f"a network drew numbers of shape {tuple(shape)}, which are not one row an image")
        return (self.count, *shape[1:])
