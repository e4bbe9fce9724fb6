"""Class probabilities of packed images."""

from collections.abc import Callable, Iterable

import numpy as np
import torch

from petals.augmentation import to_floats
from petals.models import Classifier

BATCH = 64


@torch.inference_mode()
def probabilities(
    model: Classifier,
    batches: Iterable[np.ndarray],
    device: torch.device,
    classes: int,
    progress: Callable[[Iterable], Iterable] = iter,
) -> np.ndarray:
    """Run `model` in evaluation mode over uint8 N × H × W × 3 batches; gives float32 N × classes."""
    was_training = model.training
    model.eval()
    parts = [np.empty((0, classes), np.float32)]
    for images in progress(batches):
        pixels = to_floats(torch.from_numpy(images).to(device))
        parts.append(model.probabilities(pixels).cpu().numpy())
    model.train(was_training)
    return np.concatenate(parts)
