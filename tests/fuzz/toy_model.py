"""The model that the toy adapters of the seeds belong to."""

from torch import nn

from fuzz.seeds import LAYERS


def toy_model() -> nn.Module:
    model = nn.Module()
    for path, (out, inputs, *kernel) in LAYERS.items():
        *parents, leaf = path.split(".")
        place = model
        for name in parents:
            if not hasattr(place, name):
                place.add_module(name, nn.Module())
            place = getattr(place, name)
        place.add_module(leaf, nn.Conv2d(inputs, out, tuple(kernel)) if kernel else nn.Linear(inputs, out))
    return model.requires_grad_(False).eval()
