"""From scheme to scheme, no change of a weight becomes another one: whole matrices, as merges in float64 have them.

Schemes and families are those of the registries, so that a new one is tried by being added.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers_families
import language_models
import pytest
import torch
from adapter_files import Shapes, factors_of, shapes_in
from adapters import dotted, kohya
from diffusers_families import says
from safetensors.torch import load_file, save_file
from torch import Tensor

from lora_inspect import schemes
from lora_inspect.architectures import by_name, every
from lora_inspect.converting.target.target_program import writing_of
from lora_inspect.schemes import written
from lora_inspect.schemes.record import LOST

pytestmark = [pytest.mark.numeric, pytest.mark.slow]

LANGUAGE = {
    "bert": "BertForMaskedLM",
    "distilbert": "DistilBertForSequenceClassification",
    "gpt2": "GPT2LMHeadModel",
    "gpt_bigcode": "GPTBigCodeForCausalLM",
    "gpt_neox": "GPTNeoXForCausalLM",
    "llm": "Phi3ForCausalLM",
    "t5": "T5ForConditionalGeneration",
}
# A relative difference of whole matrices; the scale is rounded to float32 on the way.
BOUND = 1e-6


# No tensor tells the order of the rows in the fused layers, so that the blocks of the layouts are not related.
UNRELATED = {"minimax_h3"}


def is_other(family: str, layout: Any) -> bool:
    """Whether a layout is another than that of the test's files."""
    return getattr(layout, "name", layout) != by_name(family).layouts[0].name


def taking(family: str, dora: bool = False) -> list[str]:
    """The schemes that have names for a family, but for GGUF: it needs a model's config, and has tests of its own."""
    found = []
    for name in written():
        writing = writing_of(schemes.by_name(name))
        layout = writing.layout(by_name(family))
        if (
            layout
            and not (dora and writing.magnitudes == LOST)
            and not (family in UNRELATED and is_other(family, layout))
        ):
            found.append(name)
    # Of some families musubi-tuner has layers in the blocks alone, and is given no file with more.
    left_out = ("gguf", "musubi") if family in ("flux", "hunyuan_video") else ("gguf",)
    return [name for name in found if name not in left_out]


def shapes_of(family: str) -> Shapes:
    """(out, in, *kernel) of layers of the family by path in its last layout, that of diffusers where it has one."""
    if family in diffusers_families.FAMILIES:
        return diffusers_families.adapted(diffusers_families.model(family))
    if family in LANGUAGE:
        return language_models.shapes(language_models.model(LANGUAGE[family]))
    # No layout of the others has rows in another order.
    layout = by_name(family).layouts[0]
    return {path.replace("{i}", str(number)): (6, 4) for path in layout.paths for number in (0, 1)}


class Trips:
    """Conversions of the adapters of a family, and the weights that merges of their results make."""

    def __init__(self, family, run, folder, shapes: Mapping[str, Shapes], dora: bool = False) -> None:
        self.family, self.run, self.folder, self.dora = family, run, folder, dora
        numbers = torch.Generator().manual_seed(5)
        base = {
            f"{prefix}{path}.weight": torch.randn(shape, generator=numbers, dtype=torch.float64) * float(dora)
            for prefix, own in shapes.items()
            for path, shape in own.items()
        }
        save_file(base, folder / "base.safetensors", says(family))

    def convert(self, file: Path, scheme: str, *options: str) -> Path:
        """The file in the names of a scheme, in a folder of its own."""
        out = self.folder / f"{file.stem}-{scheme}" / (f"{file.stem}-{scheme}" + ending(scheme))
        out.parent.mkdir()
        options = (*options, *(["--keep-dora"] if self.dora else []))
        ended = self.run("convert", file, "--to", scheme, "-o", out, *options)
        assert ended.status == 0, ended.stderr
        return out

    def weights(self, file: Path, *options: str) -> dict[str, Tensor]:
        """What a merge of the file makes of the base."""
        out = self.folder / "merged.safetensors"
        ended = self.run("merge", self.folder / "base.safetensors", file, "-o", out, "--force", *options)
        assert ended.status == 0, ended.stderr
        return load_file(out)


def ending(scheme: str) -> str:
    """What an output is called: a folder where the scale stands in a file beside the tensors."""
    return ".safetensors" if schemes.by_name(scheme).absent_alpha == "one" else ""


def assert_same(found: Mapping[str, Tensor], meant: Mapping[str, Tensor], names: Sequence[str] | None = None) -> None:
    for name in names or meant:
        assert (found[name] - meant[name]).norm() <= BOUND * meant[name].norm(), name
        assert meant[name].any()


@pytest.mark.parametrize("dora", [False, True], ids=["LoRA", "DoRA on the first layout"])
@pytest.mark.parametrize("family", [family.name for family in every()])
def test_a_cycle_of_all_schemes(family, dora, run, tmp_path):
    shapes = shapes_of(family)
    first = by_name(family).layouts[0].name
    is_other = dora and family in diffusers_families.FAMILIES
    trips = Trips(family, run, tmp_path, {"": shapes_in(first, family, shapes) if is_other else shapes}, dora)
    file = tmp_path / "0.safetensors"
    save_file(kohya("lycoris_", factors_of(shapes, dora)), file, says(family))
    meant = trips.weights(file)
    for scheme in taking(family, dora):
        file = trips.convert(file, scheme)
        if not dora:
            assert_same(trips.weights(file), meant)
    assert_same(trips.weights(file), meant)


@pytest.mark.parametrize("family", ["wan", "sdxl", "qwen_image"])
def test_scales_that_are_powers_of_two_change_no_bit_where_nothing_is_stacked(family, run, tmp_path):
    shapes = shapes_of(family)
    adapter = {
        path: own._replace(alpha=len(own.down) * 2.0 ** (number % 5 - 2))
        for number, (path, own) in enumerate(factors_of(shapes).items())
    }
    trips, file = Trips(family, run, tmp_path, {}), tmp_path / "0.safetensors"
    save_file(kohya("lycoris_", adapter), file, says(family))
    # OneTrainer takes one rank for all layers, so the smaller ones are filled up with zeros for it.
    for scheme in [*(scheme for scheme in taking(family) if scheme != "onetrainer"), "lycoris"]:
        file = trips.convert(file, scheme)
    found = load_file(file)
    assert len(found) == 3 * len(adapter) > 30
    for path, own in adapter.items():
        name = "lycoris_" + path.replace(".", "_")
        scale = float(found[f"{name}.alpha"]) / len(own.down)
        assert torch.equal(found[f"{name}.lora_down.weight"], own.down)
        assert torch.equal(found[f"{name}.lora_up.weight"] * scale, own.up * (own.alpha / len(own.down)))


# The families of which every pair of schemes is tried, and how many of their text encoders.
PAIRED = {"flux": 1, "sdxl": 2, "z_image": 0}
PAIRS = [(family, scheme) for family in PAIRED for scheme in taking(family)]


def encoders_in(scheme: str, family: str) -> int:
    """How many of the CLIP encoders of a family a scheme has names for."""
    prefixes = writing_of(schemes.by_name(scheme)).encoders(by_name(family))
    return min(PAIRED[family], len(prefixes))


@pytest.mark.parametrize(("family", "source"), PAIRS)
def test_all_pairs_of_schemes(family, source, run, tmp_path):
    pipeline, count = by_name(family).pipeline_name, encoders_in(source, family)
    shapes = {f"{pipeline}.": shapes_of(family)}
    for number in range(PAIRED[family]):
        encoder = diffusers_families.text_encoder(number)
        shapes[("text_encoder.", "text_encoder_2.")[number]] = diffusers_families.adapted(encoder)
    trips = Trips(family, run, tmp_path, shapes)
    tensors = {
        key: value
        for at, (prefix, own) in enumerate(shapes.items())
        for key, value in dotted(prefix, factors_of(own, seed=at)).items()
    }
    save_file(tensors, tmp_path / "0.safetensors", says(family))
    meant = trips.weights(tmp_path / "0.safetensors")
    model = [name for name in meant if name.startswith(pipeline)]
    only = () if count else ("--only", "model")
    file = trips.convert(tmp_path / "0.safetensors", source, *only)
    for target in taking(family):
        both = count and encoders_in(target, family)
        found = trips.weights(trips.convert(file, target, *(() if both else ("--only", "model"))))
        assert_same(found, meant, None if both else model)
