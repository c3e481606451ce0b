"""What the toolkit knows of one model family, as data."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Layout:
    """One way of naming the modules of a family.

    `paths` are dotted module paths from the model's root, with `{i}` for a running index. `kohya_prefix`
    is what the underscored schemes put in front of a path of this layout.
    """

    name: str
    paths: tuple[str, ...]
    kohya_prefix: str = "lora_unet_"


@dataclass(frozen=True, slots=True)
class Size:
    """One published size of a family, told by the width of a module: (path, out features, in features).

    None stands for a dimension that does not tell sizes apart.
    """

    name: str
    path: str
    out_features: int | None
    in_features: int | None


@dataclass(frozen=True, slots=True)
class Architecture:
    """A model family: its layouts, its sizes and the names that trainers write into metadata for it."""

    name: str
    title: str
    layouts: tuple[Layout, ...]
    sizes: tuple[Size, ...] = ()
    metadata_names: tuple[str, ...] = field(default=())
