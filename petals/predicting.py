"""What a classifier answers to packed images."""

from collections.abc import Iterable

import numpy as np
import torch

from petals.augmentation import to_floats
from petals.models import Classifier


@torch.inference_mode()
def answers(
    model: Classifier, batches: Iterable[np.ndarray], device: torch.device, classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Run `model` in evaluation mode over uint8 N × H × W × 3 batches.

    Gives probabilities, float32 N × classes, and the features that the head sees, float32 N × D; 0 × 0 without images.
    """
    was_training = model.training
    model.eval()
    parts = []
    for images in batches:
        pixels = to_floats(torch.from_numpy(images).to(device))
        parts.append([each.cpu().numpy() for each in model.answer(pixels)])
    model.train(was_training)
    if not parts:
        return np.empty((0, classes), np.float32), np.empty((0, 0), np.float32)
    scores, features = (np.concatenate(each) for each in zip(*parts, strict=True))
    return scores, features
