"""Writes docs/architectures.md from the registry of architectures: `python docs/write_architectures.py`."""

import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from real_models import DIFFUSERS, MULTIMODAL, TRANSFORMERS  # noqa: E402

from lora_inspect.architectures import every  # noqa: E402
from lora_inspect.architectures.patterns import pattern_of, patterns_of  # noqa: E402
from lora_inspect.architectures.record import Architecture, Layout  # noqa: E402
from lora_inspect.reading.base.base_names import without_roots  # noqa: E402

PAGE = ROOT / "docs" / "architectures.md"
HEAD = """# Every architecture

The table lists each model family with its layouts, and the names of its modules in files. A layout is one naming of a
family's modules.

- Files with dots have the paths of a layout unchanged: after `diffusion_model.` those of the family's own program,
  after the prefix in the table those of diffusers, after `base_model.model.` any.
- Files with underscores have the prefix of the table.

A layout relates to the first one of its family in one of these ways:

- **related**: `merge` folds an adapter of one into a base of the other, and `convert` writes it. Relations match the
  rows of the modules;
- **roots**: the paths are the same below `model.`, `transformer.` and similar roots, which `merge` ignores;
- **same names**: one naming, which two kinds of program have;
- **fused and split**: some models of the family fuse layers that others split, or have experts one by one instead of
  all in one, and these layers are related.

The last column names the real class that the tests build with tiny sizes; each of its layers is a path of the layout.
If a family has none, its names come from its own program: `names only`.

`docs/write_architectures.py` writes this page from the registry in `lora_inspect/architectures/families/`. Each file
there says more: the source of the names, the published sizes, and how each module is related to those of another
layout.

| family | layout | a module of it | prefixes | to the first layout | held to |
|---|---|---|---|---|---|
"""


def models_of(family: Architecture, layout: Layout) -> list[str]:
    """The classes that confirm the layout."""
    found = [f"`{name}`" for name, _, families in DIFFUSERS if layout.name == "diffusers" and family.name in families]
    found += [f"`{name}`" for name, _, *where in TRANSFORMERS if where == [family.name, layout.name]]
    found += [f"`{name}`" for name in MULTIMODAL if (family.name, layout.name) == ("llm", "hf-multimodal")]
    return list(dict.fromkeys(found))


def relation(family: Architecture, layout: Layout) -> str:
    """What relates a layout to the first one of its family."""
    first = family.layouts[0]
    ours, theirs = (patterns_of(one.paths, ".") for one in (layout, first))
    if layout is first:
        inside = any(
            pattern_of(path, ".") in ours
            for one in family.correspondence.relations
            for path in one.parts
            if one.whole not in one.parts and pattern_of(one.whole, ".") in ours
        )
        return f"same names: {', '.join(layout.also)}" if layout.also else "fused and split" if inside else ""
    for one in family.correspondence.relations:
        for path in one.parts:
            sides = {pattern_of(one.whole, "."), pattern_of(path, ".")}
            if len(sides) > 1 and sides & ours and sides & theirs and not sides <= ours & theirs:
                return "related"
    bare = [{without_roots(path)[1] for path in one.paths} for one in (layout, first)]
    return "roots" if len(bare[0] & bare[1]) > 1 else "not known"


def prefixes(family: Architecture, layout: Layout) -> str:
    """What files put before the paths of a layout, apart from what any scheme puts before any."""
    dotted = f"{family.pipeline_name}." if layout.name == "diffusers" else ""
    return ", ".join(f"`{one}`" for one in (layout.kohya_prefix, dotted) if one)


def rows(family: Architecture) -> Iterator[str]:
    """The lines of the table for one family."""
    sizes = list(dict.fromkeys(size.name for size in family.sizes if size.name))
    title = f"**{family.title}** `{family.name}`" + (f", {', '.join(sizes)}" if sizes else "")
    confirmed = {layout.name: models_of(family, layout) for layout in family.layouts}
    for layout in family.layouts:
        module = next((path for path in layout.paths if "{i}." in path), layout.paths[0])
        name = f"{layout.name} (of the family that it descends from)" if layout.borrowed else layout.name
        held = ", ".join(confirmed[layout.name]) or ("" if any(confirmed.values()) else "names only")
        cells = (title, name, f"`{module}`", prefixes(family, layout), relation(family, layout), held)
        yield f"| {' | '.join(cells)} |"
        title = ""


def page() -> str:
    """The page as it should be."""
    return HEAD + "\n".join(line for family in every() for line in rows(family)) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
