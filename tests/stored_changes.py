"""The changes that files of LoRA state, computed with numpy from the stored factors, and how near two of them are."""

import numpy as np
from safetensors.numpy import load_file

# Half of the last place of a float16, relative to the largest number of a product of few terms.
HALF_PLACE = 2.0**-11
ENDS = ((".lora_down.weight", ".lora_up.weight"), (".lora_A.weight", ".lora_B.weight"))


def factors(path, module):
    """down and up of a layer, in float64."""
    tensors = load_file(path)
    down, up = next((down, up) for down, up in ENDS if module + down in tensors)
    return tensors[module + down].astype(np.float64), tensors[module + up].astype(np.float64)


def stored_scale(path, module):
    """alpha/rank, or 1 where there is no alpha."""
    tensors = load_file(path)
    rank = len(factors(path, module)[0])
    return float(tensors[f"{module}.alpha"].item()) / rank if f"{module}.alpha" in tensors else 1.0


def change(path, module, scale, rows=64):
    """The first rows of a layer's change."""
    down, up = factors(path, module)
    return scale * up[:rows] @ down


def singular_values(path, module, scale=1.0):
    """Those of a layer's change, by the small core of its factors."""
    down, up = factors(path, module)
    return scale * np.linalg.svd(np.linalg.qr(up)[1] @ np.linalg.qr(down.T)[1].T, compute_uv=False)


def assert_near(found, wanted, places=4.0):
    """Equal but for the rounding of a few factors to float16."""
    assert np.abs(found - wanted).max() <= places * HALF_PLACE * np.abs(wanted).max()
