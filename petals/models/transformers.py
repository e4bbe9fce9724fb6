"""Kornia's transformers as backbones: normalised images (N, 3, H, W) in, pooled features (N, `width`) out.

Each class has `stages()`, the parts that learn, from the image to the features. Kornia downloads weights into
torch's hub cache and reads them with `weights_only`.
"""

import math
import warnings
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import TypeVar

import torch
from kornia.models.tiny_vit import TinyViT
from kornia.models.vit import VisionTransformer
from kornia.models.vit_mobile import MobileViT
from torch import Tensor, nn
from torch.nn import functional as F

from petals.architectures import WAY_OUT
from petals.errors import PetalsError

Kornia = TypeVar("Kornia", bound=nn.Module)
CONV_VIT = {"ti": (192, 3), "s": (384, 6)}  # size: (width, attention heads)


class ViT(nn.Module):
    """Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021; the features are the class token's."""

    def __init__(self, network: VisionTransformer):
        super().__init__()
        self.network = network
        self.width = network.embed_size
        # Kornia's encoder holds on to the output of every block; its plain sequence of blocks does not.
        self.network.encoder = self.network.encoder.blocks

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)[:, 0]

    def stages(self) -> list[nn.Module]:
        return [self.network.patch_embedding, *self.network.encoder, self.network.norm]


def patch_vit(variant: str, image_size: int, pretrained: bool) -> ViT:
    """Make a ViT that sees patches, such as "vit_ti/16"."""
    network = VisionTransformer.from_config(variant, image_size=image_size)
    if pretrained:
        published = partial(VisionTransformer.from_config, variant, pretrained=True)
        weights = download(variant.replace("/", "_"), published).state_dict()
        positions = "patch_embedding.positions"
        weights[positions] = resized_positions(weights[positions], network.patch_embedding.grid_size[0])
        network.load_state_dict(weights)
    else:
        draw_tokens(network)
    return ViT(network)


def conv_vit(size: str, image_size: int) -> ViT:
    """Make a ViT that sees what four convolutions make of patches of 16 px, which is easier to learn from little data.

    Xiao et al., "Early Convolutions Help Transformers See Better", NeurIPS 2021: the stem takes the place of one
    block, so that it costs nothing.
    """
    width, heads = CONV_VIT[size]
    channels = [3, *(width // share for share in (8, 4, 2, 1))]
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(channels):
        layers += [nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    stem = nn.Sequential(*layers, nn.Conv2d(width, width, 1))
    stem.eval()  # Kornia asks it for its grid with an image of zeros, which is to leave no trace in the norms
    network = VisionTransformer(image_size, embed_dim=width, depth=11, num_heads=heads, backbone=stem)
    draw_tokens(network)
    return ViT(network.train())


def draw_tokens(network: VisionTransformer) -> None:
    """Draw class token and positions anew: Kornia's are so large that they drown the image."""
    nn.init.trunc_normal_(network.patch_embedding.positions, std=0.02)
    nn.init.trunc_normal_(network.patch_embedding.cls_token, std=0.02)


class TinyViTBackbone(nn.Module):
    """Wu et al., "TinyViT: Fast Pretraining Distillation for Small Vision Transformers", ECCV 2022."""

    def __init__(self, variant: str, image_size: int, pretrained: bool):
        super().__init__()
        if pretrained:  # Kornia's advice for fine-tuning: the weights of ImageNet-22k
            published = partial(TinyViT.from_config, variant, pretrained="in22k", img_size=image_size)
            self.network = download(f"tiny_vit_{variant}", published)
        else:
            self.network = TinyViT.from_config(variant, img_size=image_size)
        self.width = self.network.head.in_features
        self.network.head = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    def stages(self) -> list[nn.Module]:
        parts = [part for layer in self.network.layers for part in (*layer.blocks, layer.downsample)]
        blocks = [part for part in parts if part is not None]
        return [self.network.patch_embed, *blocks, self.network.norm_head]


class MobileViTBackbone(nn.Module):
    """Mehta and Rastegari, "MobileViT", ICLR 2022; Kornia has no weights for it."""

    def __init__(self, variant: str):
        super().__init__()
        self.network = MobileViT(variant)
        self.width = self.network.conv2[0].out_channels

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x).mean((2, 3))

    def stages(self) -> list[nn.Module]:
        mv2, mvit = self.network.mv2, self.network.mvit
        return [self.network.conv1, *mv2[:5], mvit[0], mv2[5], mvit[1], mv2[6], mvit[2], self.network.conv2]


def resized_positions(positions: Tensor, grid: int) -> Tensor:
    """Fit position embeddings (1 + g·g, D) of g × g patches to another grid; row 0 is the class token's.

    Those of no square grid come back as they are.
    """
    old = math.isqrt(max(positions.shape[0] - 1, 0)) if positions.dim() == 2 and positions.is_floating_point() else 0
    if old in (0, grid) or len(positions) != 1 + old * old:
        return positions
    patches = positions[1:].T.reshape(1, -1, old, old)
    patches = F.interpolate(patches, size=(grid, grid), mode="bicubic", antialias=True)
    return torch.cat([positions[:1], patches.flatten(2)[0].T])


def download(name: str, build: Callable[[], Kornia]) -> Kornia:
    """Call Kornia's builder; raises PetalsError where the weights cannot be had."""
    try:
        # On retries, and on its own head, which we replace.
        with warnings.catch_warnings(action="ignore", category=UserWarning):
            return build()
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise PetalsError(f"weights of {name} cannot be downloaded ({reason}); {WAY_OUT}") from None
