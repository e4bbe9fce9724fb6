"""Fine-tuning the usual way, to compare with: python -m benchmarks.usual.

Pillow decodes every image in every epoch, and workers augment one by one. A Dataset of JPEG files, torch's DataLoader
with a worker a core, Pillow's operations for what the view policy does, AdamW on all weights, batch norms that learn,
mixed precision where the GPU has it.
"""

import random
from functools import partial
from pathlib import Path

import click
import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import nn
from torch.utils.data import DataLoader, Dataset

from petals import models
from petals.commands import Command
from petals.parallel import cores
from petals.scores import macro_f1


class Photographs(Dataset):
    """FOLDER/CLASS/*.jpg as float32 3 × S × S in 0…1, augmented or cut to the centre, and labels."""

    def __init__(self, folder: Path, size: int, augmented: bool) -> None:
        classes = sorted(each.name for each in folder.iterdir())
        self.files = [(path, classes.index(path.parent.name)) for path in sorted(folder.glob("*/*.jpg"))]
        self.classes, self.size, self.augmented = classes, size, augmented

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, int]:
        path, label = self.files[number]
        with Image.open(path) as image:
            image = image.convert("RGB")
        image = augment(image, self.size) if self.augmented else crop(image, 1.0, (0.5, 0.5), self.size)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255, label


def crop(image: Image.Image, area: float, place: tuple[float, float], size: int) -> Image.Image:
    """A square of `area` times the largest one, at `place` (0…1 of the room there is), resized to `size` px."""
    side = min(image.size) * area**0.5
    left, top = ((extent - side) * share for extent, share in zip(image.size, place, strict=True))
    return image.resize((size, size), Image.Resampling.BILINEAR, (left, top, left + side, top + side))


def augment(image: Image.Image, size: int) -> Image.Image:
    """A random crop, turn, flip and change of light, about as strong as those of params.yaml."""
    image = crop(image, random.uniform(0.35, 1), (random.random(), random.random()), size)
    image = image.rotate(random.uniform(-20, 20), Image.Resampling.BILINEAR)
    if random.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for enhancer in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhancer(image).enhance(random.uniform(0.8, 1.2))
    return image


@click.command(help=__doc__, cls=Command)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--size", default=160, show_default=True, help="Pixels.")
@click.option("--epochs", default=12, show_default=True)
@click.option("--lr", default=1e-3, show_default=True)
@click.option("--batch-size", default=32, show_default=True)
@click.option("--threads", default=2, show_default=True, help="Of torch.")
@click.option("--seed", default=1, show_default=True)
def main(folder: Path, size: int, epochs: int, lr: float, batch_size: int, threads: int, seed: int) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    train, val = Photographs(folder / "train", size, True), Photographs(folder / "val", size, False)
    options = {"batch_size": batch_size, "num_workers": cores(), "persistent_workers": True}
    batches = DataLoader(train, shuffle=True, drop_last=True, worker_init_fn=partial(seed_worker, seed), **options)
    validation = DataLoader(val, **options)
    net = models.create("efficientnet_lite0", len(train.classes), size, pretrained=True).to(device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * len(batches), pct_start=0.1)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    for epoch in range(epochs):
        net.train()
        for images, labels in batches:
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                loss = criterion(net(images.to(device)), labels.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        net.eval()
        with torch.inference_mode():
            found = [(net(images.to(device)).argmax(1).cpu(), labels) for images, labels in validation]
        predicted, labels = (torch.cat(each).numpy() for each in zip(*found, strict=True))
        click.echo(f"epoch {epoch + 1}/{epochs}: val macro F1 {macro_f1(labels, predicted):.3f}")


def seed_worker(seed: int, number: int) -> None:
    random.seed(seed + number)


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.usual")
