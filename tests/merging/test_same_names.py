"""Adapters and bases that call modules alike but for what stands before the paths."""

import layouts
import pytest
from adapters import assert_within, dotted, expected, factors, kohya

from lora_inspect.architectures import by_name

pytestmark = pytest.mark.numeric

# How the names of files begin, and what a base may put before the same paths.
PREFIXES = {"lora_unet_": kohya, "diffusion_model.": dotted, "transformer.": dotted, "": dotted}
BASES = ("", "model.diffusion_model.", "transformer.")
# The root of each family's names in transformers' classes, and the layout that has it.
ROOTS = {"bert": ("bert.", 1), "gpt2": ("transformer.", 0), "gpt_neox": ("gpt_neox.", 0), "t5": ("transformer.", 1)}


@pytest.mark.parametrize("root", BASES)
@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("name", layouts.alike())
def test_merge_sees_through_the_prefixes_of_both(name, prefix, root, merged):
    own = layouts.first_layout(name)
    adapter = factors(own, [path.removesuffix(".weight") for path in own])
    found = merged({f"{root}{key}": value for key, value in own.items()}, PREFIXES[prefix](prefix, adapter))
    found = {key.removeprefix(root): value for key, value in found.items()}
    assert_within(found, *expected(own, adapter, 1.0, interpolate=False))


@pytest.mark.parametrize("with_root", [False, True], ids=["without its root", "with its root"])
@pytest.mark.parametrize("name", ROOTS)
def test_merge_sees_through_the_roots_of_transformers(name, with_root, merged):
    root, layout = ROOTS[name]
    paths = [path for path in by_name(name).layouts[layout].paths if path.startswith(root) and "{i}" in path]
    own = layouts.tensors({f"{path.replace('{i}', '0')}.weight": (6, 4) for path in paths})
    bare = {path.removeprefix(root): value for path, value in own.items()}
    ours, theirs = (own, bare) if with_root else (bare, own)
    adapter = factors(ours, [path.removesuffix(".weight") for path in ours])
    found = merged(theirs, dotted("diffusion_model.", adapter))
    back = {(root if with_root else "") + path.removeprefix(root): value for path, value in found.items()}
    assert_within(back, *expected(ours, adapter, 1.0, interpolate=False))


@pytest.mark.parametrize("prefix", ["lora_unet_", "diffusion_model."])
@pytest.mark.parametrize("with_root", [False, True], ids=["without its root", "with its root"])
def test_hidream_o1_with_and_without_its_root(prefix, with_root, merged):
    whole = layouts.first_layout("hidream_o1")
    bare = {path.removeprefix("model."): value for path, value in whole.items()}
    ours, theirs = (whole, bare) if with_root else (bare, whole)
    adapter = factors(ours, [path.removesuffix(".weight") for path in ours])
    found = merged(theirs, PREFIXES[prefix](prefix, adapter))
    back = {("model." if with_root else "") + path.removeprefix("model."): value for path, value in found.items()}
    assert_within(back, *expected(ours, adapter, 1.0, interpolate=False))
