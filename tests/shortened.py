"""Models with fewer blocks than they have: in a stage these are alike, and each costs as much as the first."""

from itertools import pairwise

from torch import nn

from petals.models import Classifier
from petals.models.efficientnet_lite import EfficientNetLite
from petals.models.transformers import MobileViTBackbone, TinyViTBackbone, ViT


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


def shapes(block: nn.Module) -> list[tuple[int, ...]]:
    return [parameter.shape for parameter in block.parameters()]
