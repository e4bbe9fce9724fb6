"""The optimiser's groups, the learning rate's course against torch's, averaged weights against a plain loop."""

import copy
import subprocess
import sys

import pytest
import torch
from conftest import REPOSITORY
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from petals.models import create
from petals.optim import AdamW, AveragedWeights, adamw, warmup_cosine


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))


def train(model: nn.Module, optimizer: AdamW | torch.optim.Optimizer) -> None:
    model.zero_grad()
    model(torch.randn(5, 3, 4, 4)).square().sum().backward()
    optimizer.step()


def test_kernels_and_matrices_decay_but_no_bias_and_no_norm():
    model = network()
    model[4].bias.requires_grad = False
    decayed, spared = adamw(model, 0.1, 0.5).param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.5, 0.0)
    assert {id(p) for p in decayed["params"]} == {id(model[0].weight), id(model[4].weight)}
    assert {id(p) for p in spared["params"]} == {id(model[0].bias), id(model[1].weight), id(model[1].bias)}


@pytest.mark.parametrize(
    ("name", "ends", "count"),
    [("tiny_vit_5m", ("attention_biases",), 10), ("vit_ti_16", ("positions", "cls_token"), 2)],
)
def test_of_what_has_two_dimensions_only_matrices_and_kernels_decay(name: str, ends: tuple[str, ...], count: int):
    """As TinyViT's authors have it, and timm for ViTs (`no_weight_decay`)."""
    model = create(name, 3, 32, pretrained=False)
    added = {id(each) for name, each in model.named_parameters() if name.endswith(ends)}
    decayed, spared = ({id(each) for each in group["params"]} for group in adamw(model, 0.1, 0.5).param_groups)
    assert len(added) == count and added <= spared
    assert decayed | spared == {id(each) for each in model.parameters()}
    assert all(each.ndim < 2 or id(each) in decayed | added for each in model.parameters())


def test_the_head_learns_at_its_own_rate():
    model = network()
    model.head = nn.Linear(16, 2)
    *body, matrix, bias = adamw(model, 0.1, 0.5, head_lr=3).param_groups
    assert [group["scale"] for group in (*body, matrix, bias)] == [1, 1, 3, 3]
    assert (matrix["params"], bias["params"]) == ([model.head.weight], [model.head.bias])


def test_a_step_is_that_of_torchs_own_class_to_the_bit():
    ours, theirs = network().to(memory_format=torch.channels_last), network().to(memory_format=torch.channels_last)
    optimizer = adamw(ours, 0.01, 0.3)
    groups = [
        {"params": [each for each in theirs.parameters() if (each.ndim > 1) == decayed], "weight_decay": decay}
        for decayed, decay in ((True, 0.3), (False, 0.0))
    ]
    reference = torch.optim.AdamW(groups, lr=0.01, fused=True)
    for step in range(5):
        for model, each in ((ours, optimizer), (theirs, reference)):
            for group in each.param_groups:
                group["lr"] = 0.01 / (1 + step)
            model[4].bias.requires_grad_(step != 2)  # without a gradient it rests
            torch.manual_seed(step)
            train(model, each)
    for mine, its in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, its)
        assert optimizer.state[mine].keys() == reference.state[its].keys()
        assert all(torch.equal(slot, reference.state[its][name]) for name, slot in optimizer.state[mine].items())


def test_training_does_not_load_torchs_compiler():
    command = """
import sys, torch
from torch import nn
from petals.devices import set_up
from petals.optim import adamw
set_up("cpu", 1)
model = nn.Linear(2, 2)
optimizer = adamw(model, 0.1, 0.1)
model(torch.ones(1, 2)).sum().backward()
nn.utils.clip_grad_norm_(model.parameters(), 1.0)
optimizer.step()
sys.exit("torch._dynamo" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", command], cwd=REPOSITORY, check=True)


def test_decay_without_a_gradient_shrinks_by_lr_times_decay():
    model = network()
    before = copy.deepcopy(model.state_dict())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    adamw(model, 0.1, 0.5).step()
    assert torch.allclose(model[4].weight, before["4.weight"] * (1 - 0.1 * 0.5))
    assert torch.equal(model[4].bias, before["4.bias"])


@pytest.mark.parametrize(("steps", "warmup"), [(20, 5), (100, 2), (7, 0), (6, 6)])
def test_the_learning_rate_follows_torchs_schedulers(steps: int, warmup: int):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedules = []
    if warmup:
        schedules.append(LinearLR(optimizer, 1 / warmup, 1.0, total_iters=warmup - 1))
    if steps > warmup:
        schedules.append(CosineAnnealingLR(optimizer, T_max=steps - warmup))
    schedule = SequentialLR(optimizer, schedules, [warmup] if len(schedules) == 2 else [])
    expected = []
    for _ in range(steps):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert [warmup_cosine(step, steps, warmup) for step in range(steps)] == pytest.approx(expected, abs=1e-6)


def test_one_step_of_warmup_and_one_step_in_all():
    assert warmup_cosine(0, 10, 1) == 1.0
    assert warmup_cosine(0, 1, 1) == 1.0
    assert warmup_cosine(0, 1, 0) == 1.0


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99])
def test_averaged_weights_are_those_of_a_plain_loop(decay: float):
    model = network()
    optimizer, average = adamw(model, 0.01, 0.1), AveragedWeights(model, decay)
    expected = {name: tensor.double() for name, tensor in model.state_dict().items()}
    for step in range(30):
        train(model, optimizer)
        average.update(step)
        keep = min(decay, (1 + step) / (10 + step))
        for name, tensor in model.state_dict().items():
            expected[name] = keep * expected[name] + (1 - keep) * tensor.double()
    last = copy.deepcopy(model.state_dict())

    with average.applied():
        for name, tensor in model.state_dict().items():
            if name == "1.num_batches_tracked":
                assert tensor == 30
            else:
                assert torch.allclose(tensor.double(), expected[name], atol=1e-6), name
                assert torch.equal(tensor, last[name]) == (decay == 0)
    assert all(torch.equal(tensor, last[name]) for name, tensor in model.state_dict().items())


def test_averaging_leaves_training_alone():
    alone, watched = network(), network()
    for model in (alone, watched):
        torch.manual_seed(3)
        optimizer, average = adamw(model, 0.01, 0.1), AveragedWeights(model, 0.9)
        for step in range(5):
            train(model, optimizer)
            if model is watched:
                average.update(step)
                with average.applied():
                    pass
    assert all(
        torch.equal(a, b) for a, b in zip(alone.state_dict().values(), watched.state_dict().values(), strict=True)
    )
