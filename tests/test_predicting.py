"""What a classifier answers to packed images."""

import numpy as np
import pytest
import torch
from torch import nn

from petals.models import Classifier
from petals.predicting import answers

IMAGES = np.random.default_rng(0).integers(0, 256, (7, 6, 6, 3), dtype=np.uint8)
CPU = torch.device("cpu")


class Means(nn.Module):
    """The logits are the mean levels of the channels, in 0…1; in training mode they would be dropped."""

    temperature = torch.tensor(0.5)
    head = dropout = staticmethod(lambda features: features)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(images), 3) if self.training else images.mean((2, 3))

    answer = Classifier.answer


@pytest.mark.parametrize("size", [1, 3, 7, 64])
def test_the_softmax_of_the_logits_at_the_temperature_in_order(size: int):
    found = answers(Means(), (IMAGES[at : at + size] for at in range(0, 7, size)), CPU, 3)[0]
    logits = np.exp(IMAGES.mean((1, 2)) / 255 / 0.5)
    assert found.dtype == np.float32
    assert np.allclose(found, logits / logits.sum(1, keepdims=True), atol=1e-6)


def test_features_come_beside_them():
    scores, features = answers(Means(), [IMAGES[:4], IMAGES[4:]], CPU, 3)
    assert np.array_equal(scores, answers(Means(), [IMAGES], CPU, 3)[0])
    assert features.dtype == np.float32 and np.allclose(features, IMAGES.mean((1, 2)) / 255, atol=1e-6)


def test_no_images_have_no_rows():
    assert answers(Means(), [], CPU, 3)[0].shape == (0, 3)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_in_the_mode_it_was(training: bool):
    model = Means().train(training)
    answers(model, [IMAGES], CPU, 3)
    assert model.training == training
