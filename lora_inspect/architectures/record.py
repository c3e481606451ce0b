"""What the toolkit knows of one model family, as data."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Layout:
    """One way of naming the modules of a family.

    `name` is `original` for the names of the model's own repository, `diffusers` for those of the diffusers class
    (also where the two agree), `comfyui` where ComfyUI repacks the checkpoint under names of its own, and `hf`
    for the classes of transformers, with a suffix for another root of the same model.

    `paths` are dotted module paths from the model's root, with `{i}` for a running index. They are the layers an
    adapter can sit on: Linear, convolution, and embeddings of language models.

    `kohya_prefix` is what the underscored schemes put in front of a path of this layout:
    `lora_unet_` for the layout that kohya's trainers (sd-scripts, musubi-tuner) train, which is the original one, or
    the diffusers one where they train the diffusers class; `lora_transformer_`, OneTrainer's spelling that ComfyUI
    reads too, for the diffusers layout of a family whose kohya files use the original names; empty for language
    models, which have no kohya spelling.

    `blocks` are the module lists of the layout, each with its length in the largest published model. An index
    beyond it rules the family out, and a file that reaches the last index of every list speaks for it.

    `transposed` are the last names of modules whose weights are stored as (in, out): the Conv1D of transformers.
    """

    name: str
    paths: tuple[str, ...] = field(repr=False)
    kohya_prefix: str = "lora_unet_"
    blocks: tuple[tuple[str, int], ...] = ()
    transposed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Size:
    """One published size of a family, told by the width of a module: (path, out features, in features).

    Several entries of one name describe the same size through different modules. None stands for a dimension that
    does not tell sizes apart; the name is None in a family of one size, whose width still tells it from families
    of the same names.
    """

    name: str | None
    path: str
    out_features: int | None
    in_features: int | None


@dataclass(frozen=True, slots=True)
class Architecture:
    """A model family: its layouts, its sizes and the names that trainers write into metadata for it.

    `metadata_names` are values of `ss_base_model_version` and `modelspec.architecture`, the latter without the
    `/lora` that adapters append. Case does not matter.
    """

    name: str
    title: str
    layouts: tuple[Layout, ...]
    sizes: tuple[Size, ...] = field(default=(), repr=False)
    metadata_names: tuple[str, ...] = ()


def under(parent: str, *leaves: str) -> tuple[str, ...]:
    """The paths of `leaves` below `parent`: `under("blocks.{i}", "attn.q")` is `("blocks.{i}.attn.q",)`."""
    return tuple(f"{parent}.{leaf}" for leaf in leaves)
