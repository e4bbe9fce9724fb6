"""Models with fewer blocks than they have: in a stage these are alike, and each costs as much as the first."""

import functools
from itertools import pairwise

from torch import nn

from petals.architectures import ARCHITECTURES
from petals.models import Classifier, create
from petals.models.efficientnet_lite import EfficientNetLite
from petals.models.transformers import MobileViTBackbone, TinyViTBackbone, ViT

# One model of each kind of layers, its smallest.
KINDS = ("efficientnet_lite0", "vit_ti_16", "vit_ti_conv", "tiny_vit_5m", "mobilevit_xxs")


def shorten(model: Classifier) -> Classifier:
    """Leave each stage of `model` one block of each shape, or two. The stages' tests have the default model whole."""
    match model.backbone:
        case ViT() as vit:
            del vit.network.encoder[2:]
        case TinyViTBackbone(network=network):
            for layer in network.layers:
                del layer.blocks[1:]
        case MobileViTBackbone(network=network):
            for block in network.mvit:
                del block.transformer.layers[1:]
        case EfficientNetLite() as lite:
            repeated = [new for old, new in pairwise(lite.blocks) if shapes(old) == shapes(new)]
            lite.blocks = nn.Sequential(*(block for block in lite.blocks if block not in repeated))
    return model


@functools.cache
def layers(name: str) -> list[type[nn.Module]]:
    """The kinds of the layers of a model that is shortened, in their order."""
    return [type(each) for each in shorten(create(name, 2, ARCHITECTURES[name].min_size, pretrained=False)).modules()]


def shapes(block: nn.Module) -> list[tuple[int, ...]]:
    return [parameter.shape for parameter in block.parameters()]
