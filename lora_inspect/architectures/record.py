"""The record of a model family, as data."""

from ..fast_namedtuple import NamedTuple
from .correspondence import UNKNOWN, Correspondence
from .text_encoders import TextEncoder

# The layers that turn the timestep into shifts and scales; an adapter on them changes every token at once.
MODULATION = r".*(img_mod|txt_mod|modulation).*"
NORM = r".*norm.*"
# Parameters that are no layers: of a model, by their paths, and the shifts and scales of a block, by their names.
_OF_MODELS = (
    *("pos_embed", "pos_embed.pos_embed", "positional_encoding"),
    *("register_tokens", "x_pad_token", "cap_pad_token", "keyframes_abs_pos_embedding"),
)
_MODULATION, _TABLE = "modulation", "scale_shift_table"


class Layout(NamedTuple):
    """One way of naming the modules of a family.

    `name` is `original` for the names of the model's own repository, and `diffusers` for those of the diffusers class,
    also if the two agree. It is `comfyui` if ComfyUI repacks the checkpoint under its own names, and `xlabs` for that
    trainer's names. It is `hf` for the classes of transformers, with a suffix for another root of the same model.

    `paths` are dotted module paths from the model's root, with `{i}` for a running index. They are the layers an
    adapter can sit on: Linear, convolution, and embeddings of language models.

    `norms` are the paths of norms, and of parameters that are no module's weight, as `blocks.{i}.scale_shift_table`:
    only differences change them. They are no evidence for a family, and are listed as far as they are related to those
    of another layout.

    `kohya_prefix` is the prefix of the underscored schemes for a path of this layout: `lora_unet_` for the layout that
    kohya's trainers (sd-scripts, musubi-tuner) train, which is the original one, or the diffusers one if they train the
    diffusers class. It is `lora_transformer_`, OneTrainer's spelling that ComfyUI reads too, for the diffusers layout
    of a family with kohya files in the original names. It is empty for language models, which have no kohya spelling.

    `blocks` are the module lists of the layout, each with its length in the largest published model. An index
    beyond it rules the family out, and a file that reaches the last index of every list speaks for it.

    `missing` are beginnings of paths that `paths` allow, as `{i}` stands for any number, and that the models lack, such
    as `down_blocks.3.attentions`: a file with one of them is of another family.

    `transposed` are the last names of modules that store their weights as (in, out): the Conv1D of transformers.

    `also` are other names of the layout, of programs that call the modules alike.

    `borrowed` is True if the names are those of the family that this one descends from, and the programs of that family
    load its adapters too. A file with these names is of that family, but can be converted to this one.
    """

    name: str
    paths: tuple[str, ...]
    kohya_prefix: str = "lora_unet_"
    blocks: tuple[tuple[str, int], ...] = ()
    missing: tuple[str, ...] = ()
    transposed: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    borrowed: bool = False
    norms: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Every name of the layout."""
        return (self.name, *self.also)

    @property
    def named(self) -> tuple[str, ...]:
        """Every path that something is called by: the layers, and the norms and parameters."""
        return self.paths + self.norms


class Size(NamedTuple):
    """One published size of a family, shown by the width of a module: (path, out features, in features).

    Several entries of one name describe the same size through different modules. None is a dimension that does not tell
    sizes apart. The name is None in a family of one size, where the width still tells it from families with the same
    names.
    """

    name: str | None
    path: str
    out_features: int | None
    in_features: int | None


class Switch(NamedTuple):
    """A yes-or-no option of a family's network module. While it is `excluding`, `excludes` are excluded by default."""

    name: str
    default: bool
    excluding: bool
    excludes: tuple[str, ...]


class TrainedEncoder(NamedTuple):
    """A text encoder that a trainer passes next to the model, by position; the network module adapts it too.

    Names of its modules begin with `prefix`; `classes` are the class names of its blocks. One with a `switch` is
    adapted only where the option of that name is True.
    """

    prefix: str
    classes: tuple[str, ...]
    switch: str = ""


class Training(NamedTuple):
    """The layers that the network module of a family adapts by default.

    `classes` are the class names of the blocks with adapted layers, in the code that musubi-tuner trains, and
    `diffusers_classes` those in diffusers if they differ; None is the whole model. `models` are the class names of
    whole models of the family, which tell it from others with the same blocks. `excludes` and `includes` are regular
    expressions, each matched against a whole dotted path; an include rescues from the excludes here, never from the
    user's. `keys` are short names of the family as trainers' caches have them.

    `conv_classes` are the class names of blocks of convolutions, which are adapted if `conv_dim` is given.
    `text_encoders` are adapted next to the model, in the order in which trainers pass them. `searches_names` is True if
    sd-scripts searches the expressions of `network_reg_dims` in module names; elsewhere they match whole dotted paths.

    If the blocks depend on the task, the trainer sets the attribute `task_attribute` of the model to one of the names
    in `tasks`, which has the blocks of each.
    """

    classes: tuple[str, ...] | None
    diffusers_classes: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    excludes: tuple[str, ...] = (MODULATION,)
    includes: tuple[str, ...] = ()
    switches: tuple[Switch, ...] = ()
    task_attribute: str | None = None
    tasks: tuple[tuple[str, tuple[str, ...]], ...] = ()
    keys: tuple[str, ...] = ()
    conv_classes: tuple[str, ...] = ()
    text_encoders: tuple[TrainedEncoder, ...] = ()
    searches_names: bool = False


class Architecture(NamedTuple):
    """A model family: its layouts, its sizes and the names that trainers write into metadata for it.

    `metadata_names` are values of `ss_base_model_version`, of `base_model_class` in the configs of PEFT, and of
    `modelspec.architecture`, the last without the `/lora` that adapters append. Case does not matter. `base_names` are
    the beginnings of the names of the family's repositories on a hub, in small letters.

    `text_encoders` are all text encoders of the pipeline, also the ones that trainers do not adapt; empty if unknown
    here, which rules nothing out.

    `correspondence` maps the modules of one layout to those of another; empty if unknown here. `training` is None for
    families that no network module trains. `pipeline_name` is the model's name in a pipeline of diffusers. `experts`
    are the names, in two words each, of several models with the same module names that a pipeline runs one after the
    other: the first is its component `model`, the second `model_2`. `experts_title` is the title of the family's models
    that have experts, if not all have; empty for the family's own title. `descends_from` is the family that it was made
    of; candidates name that family first.
    """

    name: str
    title: str
    layouts: tuple[Layout, ...]
    sizes: tuple[Size, ...] = ()
    metadata_names: tuple[str, ...] = ()
    base_names: tuple[str, ...] = ()
    text_encoders: tuple[TextEncoder, ...] = ()
    correspondence: Correspondence = UNKNOWN
    training: Training | None = None
    pipeline_name: str = "transformer"
    experts: tuple[str, ...] = ()
    experts_title: str = ""
    descends_from: str = ""


def is_parameter(path: str) -> bool:
    """Return True if the path is that of a parameter of a block or of a model, not of a module."""
    name = path.rpartition(".")[2]
    return path in _OF_MODELS or name == _MODULATION or _TABLE in name


def under(parent: str, *leaves: str) -> tuple[str, ...]:
    """Return the paths of `leaves` below `parent`: `under("blocks.{i}", "attn.q")` is `("blocks.{i}.attn.q",)`."""
    return tuple(f"{parent}.{leaf}" for leaf in leaves)
