"""Small bases and adapters, and merges of them that are written out in float64, right ones and wrong ones."""

import torch
from adapters import KOHYA, Factors, Names, change, drawn
from safetensors.torch import save_file

from lora_inspect.ops.verify import MergeOptions, plan_verify, verify
from lora_inspect.reading.model.settings import parse_arguments

BLOCKS, OUT, IN = 4, 24, 20


def weight(block):
    return f"blocks.{block}.attn.q.weight"


def key(block):
    return f"lora_unet_blocks_{block}_attn_q"


def base_of(blocks=BLOCKS, out=OUT, inputs=IN, seed=0):
    tensors = {weight(block): 0.1 * drawn(100 * seed + block, out, inputs) for block in range(blocks)}
    return tensors | {"norm.weight": drawn(7, out), "positions": torch.arange(5)}


def lora(seed=1, blocks=BLOCKS, out=OUT, inputs=IN, rank=4, alpha=2.0, size=0.05, name=key, ranks=None):
    """kohya's tensors: `size` is that of an entry of up @ down, each block has its own rank where `ranks` are given."""
    layers = {}
    for block in range(blocks):
        own = ranks[block] if ranks else rank
        down, up = drawn(1000 * seed + block, own, inputs), drawn(2000 * seed + block, out, own)
        layers[name(block)] = Factors(down, size / own**0.5 * up, alpha)
    return Names("", "", False, KOHYA).tensors(layers, has_alpha=alpha is not None)


def with_dora(tensors, base, seed=5, blocks=BLOCKS):
    """A `dora_scale` of outputs, a tenth away from the norms of the base's rows."""
    found = dict(tensors)
    for block in range(blocks):
        norms = base[weight(block)].norm(dim=1, keepdim=True)
        found[f"{key(block)}.dora_scale"] = norms * (1 + 0.1 * drawn(3000 * seed + block, len(norms), 1))
    return found


def delta(tensors, block, root=False, name=key):
    """`change` of the layer of a block."""
    return change(tensors, name(block), root)


def decomposed(tensors, before, block, over=None, **options):
    """magnitude · V / (norm of the rows of V, or of `over`), V = W + delta."""
    v = before + delta(tensors, block, **options)
    norms = (v if over is None else over).norm(dim=1, keepdim=True)
    return tensors[f"{key(block)}.dora_scale"].double() * v / (norms + 2.0**-23)


class Folder:
    """Writes what is compared, and verifies it."""

    def __init__(self, path):
        self.path = path

    def file(self, name, tensors, **metadata):
        file = self.path / f"{name}.safetensors"
        save_file({key: value.contiguous() for key, value in tensors.items()}, file, metadata or None)
        return str(file)

    def verified(self, merged, base, *adapters, **options):
        """`adapters` are (tensors, setting); they are called a, b, … and so are their files."""
        arguments = []
        for letter, (tensors, setting) in zip("abcdef", adapters, strict=False):
            arguments.append(self.file(letter, tensors) + (f":{setting}" if setting != "" else ""))
        merged, base = (
            self.file(name, tensors) if isinstance(tensors, dict) else str(tensors)
            for name, tensors in (("merged", merged), ("base", base))
        )
        plan = plan_verify(merged, base, parse_arguments(arguments), MergeOptions(**options))
        return Result(verify(plan), self.path)


class Result:
    """A result with the letters of adapters in the place of their paths."""

    def __init__(self, found, path):
        self.found, self._path = found, path
        self.ok = found.ok
        self.share = {self._letter(path): share for path, share in found.share.items()}
        self.noise = {self._letter(path): noise for path, noise in found.noise.items()}
        self.codes = [(f.code, self._letter(f.adapter)) for f in found.findings]
        self.messages = [f.message.replace(f"{path}/", "").replace(".safetensors", "") for f in found.findings]

    def modules(self, code):
        return [name for finding in self.found.findings if finding.code == code for name in finding.modules]

    def of(self, block, letter="a"):
        return self.found.modules[weight(block)][str(self._path / f"{letter}.safetensors")]

    def _letter(self, adapter):
        return adapter and adapter.removeprefix(f"{self._path}/").removesuffix(".safetensors")
