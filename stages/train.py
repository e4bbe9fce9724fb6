"""train: fit the classifier."""

import math
import time
from pathlib import Path

import click
import torch
from torch import Tensor, nn

from petals import checkpoint, distributed, models
from petals.augmentation import BatchAugmentation, online_policy
from petals.curves import Curves
from petals.devices import (
    autocast,
    choose_precision,
    compile_kernels,
    describe,
    memory_format,
    reseed,
    room_for_data,
    set_up,
)
from petals.distributed import Group
from petals.errors import PetalsError
from petals.fingerprint import fingerprint
from petals.models import Classifier, weights
from petals.optim import AveragedWeights, adamw, warmup_cosine
from petals.packed import PackedSplit
from petals.params import TrainParams, load_params
from petals.seeding import seed_for
from petals.training_images import TrainingImages, plan_epochs
from petals.validation import calibrate, validate
from stages.cli import Interrupt, progress, stage


@stage(TrainParams, several=True)
@click.argument("train", type=click.Path(path_type=Path))
@click.argument("val", type=click.Path(path_type=Path))
@click.argument("augmented", type=click.Path(path_type=Path))
@click.argument("pretrained", type=click.Path(path_type=Path))
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("metrics", type=click.Path(path_type=Path))
@click.argument("curves", type=click.Path(path_type=Path))
def main(train: Path, val: Path, augmented: Path, pretrained: Path, model: Path, metrics: Path, curves: Path) -> None:
    """Fit the classifier to the images of TRAIN and their views in AUGMENTED.

    VAL is scored after each epoch, but no checkpoint is chosen by it. At the end a temperature is fitted to it, rare
    classes are adjusted at that temperature, and it is fitted again to the adjusted logits; unless params.yaml gives
    one. Where TRAIN holds the images of VAL too (`final: true`), nothing is scored; without a given temperature rare
    classes are adjusted at the one fitted to TRAIN, and the model's stays 1.

    It starts from the weights in PRETRAINED (.safetensors), unless params.yaml says true or false.

    Writes the weights to MODEL (.safetensors) with a .json beside it that says how to use them, the last training loss
    to METRICS (JSON), and the curves to the folder CURVES (TSV).

    A run that was killed goes on from its last checkpoint, and ends in the same bytes.

    Started by torchrun in several processes, these divide the images of each step, and the first of them writes.
    """
    params = load_params(TrainParams)
    device = set_up(distributed.local_device(params.device), params.threads)
    group = distributed.join(device)
    if params.precision == "auto":
        precision, why = choose_precision(device, models.MODELS[params.model].attention)
        click.echo(f"precision: auto is {precision}, since {why}")
        params = params.model_copy(update={"precision": precision})
    split, validation = PackedSplit(train), PackedSplit(val)
    size = models.train_size(models.MODELS[params.model], split.image_size, params.train_size)
    epochs, passes = plan_epochs(len(split), params.batch_size, params.epochs, params.min_steps)
    data = TrainingImages(split, augmented, params.seed, params.balance, size, passes)
    if data.move_to(device, room_for_data(device)):
        click.echo(f"all images are in the memory of {device}")
    # How many processes and parts share a batch is left out: another number goes on from the same checkpoint.
    settings = params.model_dump(exclude={"accumulate"}) | {"device": describe(device)}
    key = fingerprint(settings, [train, val, augmented, pretrained])
    group.check(key)

    net = create(params, split, pretrained, group)
    if params.train_size < 1 and not models.MODELS[params.model].any_size:
        click.echo(f"train_size: {params.model} takes one size only, so it is trained at {size} px")
    group.barrier()
    trainer = Trainer(params, net, data, group)

    steps_per_epoch = data.steps(params.batch_size)
    steps = epochs * steps_per_epoch
    if (epochs, passes) != (params.epochs, 1):
        seen = "1 pass" if passes == 1 else f"{passes} passes"
        click.echo(f"min_steps: {epochs} epochs of {seen} over the images each, {steps} steps in all")
    finishing = math.floor(params.finish * epochs + 0.5)  # epochs, the last
    if params.finish and not finishing:
        click.echo(f"finish: {params.finish:g} of {epochs} is less than half an epoch, so none is on whole images")
    warmup = min(round(params.warmup_epochs * steps_per_epoch), steps // 2)

    saved = checkpoint.Checkpoint(key, net, trainer.optimizer, trainer.average, group.main)
    state = saved.load(group.broadcast) or {"step": 0, "at": f"step 0 of {steps}", "loss": 0.0, "history": []}
    if state["step"]:
        epoch = min(len(state["history"]), epochs - 1)  # the last, where only the outputs were missing
        step = state["step"] - epoch * steps_per_epoch
        click.echo(f"going on from the checkpoint at epoch {epoch + 1}, step {step} of {steps_per_epoch}")

    stop = 0  # the signal that any of the processes received
    pause = math.inf  # seconds from the last epoch to the next, most of them validation; at first not known
    with Curves(metrics, curves, state["history"], group.main) as log, Interrupt() as interrupt:
        for epoch in range(len(state["history"]), epochs):
            whole = epoch >= epochs - finishing
            order = data.order(epoch, params.batch_size)[state["step"] - epoch * steps_per_epoch :]
            for images, labels in progress(data.read_ahead(order, whole), f"epoch {epoch + 1}", "step", len(order)):
                if stop or saved.due():
                    saved.save(state)
                    interrupt.leave_if(stop)
                step = state["step"]
                lr = params.lr * warmup_cosine(step, steps, warmup)
                at = f"step {step} of {steps}, learning rate {lr:.3g}"
                loss = trainer.step(step, lr, images, labels, whole, at)
                loss, stop = group.agree(loss, interrupt.requested)
                state |= {"step": step + 1, "loss": state["loss"] + loss, "lr": lr, "at": at}

            if stop or saved.due(pause):
                saved.save(state)
            interrupt.leave_if(stop)
            began = time.monotonic()
            values = {"train": {"loss": state["loss"] / steps_per_epoch, "lr": state["lr"]}}
            line = f"epoch {epoch + 1}/{epochs}: train loss {values['train']['loss']:.3f}"
            if not split.final:
                values["val"] = validate(net, trainer.average, validation, group, state["at"])
                line += f", val nll {values['val']['nll']:.3f}, val macro F1 {values['val']['macro_f1']:.3f}"
            state["loss"] = 0.0
            log.add(values)
            click.echo(line)
            pause = time.monotonic() - began
        stop = group.agree(0.0, interrupt.requested)[1]
        if stop:
            saved.save(state)
        interrupt.leave_if(stop)
        with trainer.average.applied():
            offsets, temperature, note = calibrate(net, split, validation, group, params.adjust, params.temperature)
            click.echo(note)
            if group.main:
                weights.save(net, split.classes, model, offsets=offsets, temperature=temperature, final=split.final)
    saved.finish(state, model)
    group.barrier()
    interrupt.leave_if(group.agree(0.0, interrupt.requested)[1])


def create(params: TrainParams, split: PackedSplit, pretrained: Path, group: Group) -> Classifier:
    """Make the classifier for the classes of `split`, with the weights to start from, in training mode."""
    torch.manual_seed(seed_for(params.seed, "head"))
    net = models.create(params.model, len(split.classes), split.image_size, params.pretrained is True)
    if isinstance(params.pretrained, str):
        click.echo(weights.warm_start(net, pretrained, split.classes))
    net = group.sync_batch_norms(net).to(group.device, memory_format=memory_format(group.device)).train()
    if params.pretrained:
        net.freeze(params.frozen, params.freeze_stats)
    return net


class Trainer:
    """A classifier with all that changes it: optimiser, averaged weights, augmentation, loss."""

    def __init__(self, params: TrainParams, net: Classifier, data: TrainingImages, group: Group) -> None:
        self.params, self.net, self.data, self.group = params, net, data, group
        self.optimizer = adamw(net, params.lr, params.weight_decay, params.head_lr)
        self.average = AveragedWeights(net, params.ema)
        policy = online_policy(data.policy, data.split.image_size, data.size) if data.versions == 1 else None
        chances = dict(flip=params.flip, erasing=params.erasing, mixup=params.mixup, cutmix=params.cutmix)
        self.augment = BatchAugmentation(len(data.split.classes), **chances, policy=policy)
        self.augment_whole = BatchAugmentation(len(data.split.classes), **chances)
        self.criterion = nn.CrossEntropyLoss(label_smoothing=params.label_smoothing)
        self.learning_norms = any(isinstance(each, models.BATCH_NORMS) and each.training for each in net.modules())
        self.check_norms()
        self.learner = group.data_parallel(net)
        if params.compile:
            compile_kernels(self.learner, group.size * params.accumulate)

    def check_norms(self) -> None:
        """Raise PetalsError where batch norms that learn would see a single image."""
        params, pieces = self.params, self.group.size * self.params.accumulate
        if self.learning_norms and min(params.batch_size, len(self.data.split)) < 2 * pieces:
            advice = ["lower accumulate"] if params.accumulate > 1 else []
            advice.append("add images" if len(self.data.split) < 2 * pieces else "raise batch_size")
            advice += ["set freeze_stats: true"] if params.pretrained and not params.freeze_stats else []
            parts = f", two for each of its {pieces} parts" if pieces > 1 else ""
            raise PetalsError(
                f"batch norms that learn need {2 * pieces} images in a step{parts}; {', or '.join(advice)}"
            )

    def accumulation(self, count: int, whole: bool) -> int:
        """In how many micro-batches this process takes its share of `count` images.

        Those that come `whole` are taken in more, so that each has about as many pixels as before, and two images at
        least; but not where batch norms learn, for which fewer images at once would be another recipe.
        """
        here = self.params.accumulate
        if not whole or self.learning_norms or self.params.compile:
            return here
        larger = math.ceil((self.data.split.image_size / self.data.size) ** 2)
        return max(here, min(here * larger, count // (2 * self.group.size)))

    def step(self, number: int, lr: float, images: Tensor, labels: Tensor, whole: bool, at: str) -> float:
        """Learn from a batch, uint8 N × H × W × 3 and int64 N; gives this process's share of the loss.

        Images that come `whole`, as they are, get no policy of views.

        All random numbers are seeded by `number`. Raises PetalsError, which says `at`, where the loss is not finite.
        """
        params, group, device = self.params, self.group, self.group.device
        for each in self.optimizer.param_groups:
            each["lr"] = lr * each["scale"]
        augment = self.augment_whole if whole else self.augment
        self.net.zero_grad()
        loss = 0.0
        for batch in group.micro_batches(len(labels), self.accumulation(len(labels), whole)):
            reseed(seed_for(params.seed, "step", number), device)  # each draws for all of them, and keeps its own
            inputs, targets = augment.of_rows(batch.rows, images, labels)
            with batch.taken_by(self.learner):
                with autocast(device, params.precision):
                    share = batch.weight * self.criterion(self.learner(inputs), targets)
                del inputs  # where the first layers are frozen, nothing else keeps them for the backward pass
                (group.size * share).backward()  # as the mean over all processes is taken of the gradients
            loss = loss + share.detach()
        norm = nn.utils.clip_grad_norm_(self.net.parameters(), params.clip_norm)
        if not torch.isfinite(loss + norm):
            raise PetalsError(f"the loss is no longer finite at {at}: lower lr; the last checkpoint stays")
        self.optimizer.step()
        group.average_statistics(self.net)
        self.average.update(number)
        return loss.item()


if __name__ == "__main__":
    main(prog_name="python -m stages.train")
