"""What petals.images.bicubic does, for many images: by torch, which what answers single photographs does without."""

import numpy as np


def bicubic(image: np.ndarray, size: int) -> np.ndarray:
    """Resize uint8 S × S × 3 to uint8 size × size × 3: bicubic and antialiased.

    In integers, as Pillow's, from which it differs by one level in a few bytes of a thousand; six to ten times as fast.
    """
    # Not at the top: torch takes a second to import, which images that have their size already need not wait for.
    import torch
    from torch.nn.functional import interpolate

    # A batch of one in front, and not behind: only so torch sees that pixels lie together, and gives them back so.
    planes = torch.from_numpy(np.require(image, requirements="W"))[None].permute(0, 3, 1, 2)
    resized = interpolate(planes, (size, size), mode="bicubic", antialias=True)
    return resized[0].permute(1, 2, 0).contiguous().numpy()
