"""Numbers where files say some: in metadata as texts, in configs as JSON, and how many dimensions tensors have."""

import json
import math
import random
from typing import Any

from fuzz.contents import Files, Json, Tensor, Weights
from fuzz.odd_json import Raw, spell

# Beyond every float, beyond what int() reads at once, and what is no number or no finite one.
WHOLE = ("1" + "0" * 400, "9" * 309, "9" * 5000, str(2**63), str(2**64 - 1), str(2**31), "0", "1", "4", "255")
TEXTS = (
    *WHOLE, *(f"-{digits}" for digits in WHOLE), "1e400", "-1e400", "1e308", "1e-400", "5e-324", "inf", "-inf",
    "Infinity", "nan", "-nan", "0.5", "4.0", "0x10", "1_000", "٤", " 4 ", "+4", "4,0", "1/2", "True", "false", "None",
    "null", "[4]", "[]", "{}", '{"q": 4}', "", " ",
)  # fmt: skip
JSON: tuple[Any, ...] = (
    *map(Raw, WHOLE), *(Raw(f"-{digits}") for digits in WHOLE), Raw("1e999"), Raw("-1e999"), Raw("NaN"),
    Raw("Infinity"), Raw("1e-400"), 1e308, 5e-324, 0.5, -0.0, 4.0, True, False, None, "4", "x", [], [4], {}, {"q": 4},
    [[[[4]]]], Raw("[" * 120 + "]" * 120), Raw('{"q":' * 60 + "4" + "}" * 60),
)  # fmt: skip
# Those that are a rank or an alpha as good files have them: with one of them the next check is reached.
_PLAIN = ("4", "8", "3", "2.0")
_MODULES = (
    "networks.lora", "networks.lora", "networks.lora", "networks.lora_flux", "networks.lora_sd3",
    "networks.lora_lumina", "networks.lora_wan", "networks.loha", "networks.lokr", "lycoris.kohya",
    "lora_inspect.networks",
)  # fmt: skip
# What says a rank, an alpha or a size in the metadata of trainers and of programs, and in the arguments of a network.
_KEYS = (
    "ss_network_dim", "ss_network_alpha", "ss_network_dim", "ss_network_alpha", "ss_network_dropout", "ss_epoch",
    "ss_steps", "ss_num_epochs", "ss_learning_rate", "ss_clip_skip", "ss_seed", "ss_training_started_at",
    "ss_resolution", "modelspec.resolution", "modelspec.date", "reference_downscale_factor", "step", "epoch",
    "sshs_legacy_hash", "ss_max_train_steps", "ss_num_train_images", "ss_v2", "lora_inspect.trained_as",
)  # fmt: skip
_OPTIONS = (
    "conv_dim", "conv_alpha", "network_reg_dims", "img_attn_dim", "single_dim", "in_dims", "x_attn_dim", "emb_dims",
    "attn_dim", "embedder_dims", "rank_dropout", "factor", "block_size", "alpha", "rank", "use_rslora", "rs_lora",
    "split_qkv", "split_dims", "dropout", "constraint", "algo", "decompose_both", "rank_pattern", "alpha_pattern",
)  # fmt: skip
# What says numbers in objects of the metadata: the scales, the rank and the alpha of a config, counts of pictures.
_OBJECTS: dict[str, tuple[str, ...]] = {
    "ss_rank_pattern": ("to_q", "blocks.0.attn.to_q"),
    "ss_alpha_pattern": ("to_q", "blocks.0.attn.to_q"),
    "lora_inspect.folded": ("scale", "modules"),
    "lora_inspect.magnitude_norms": ("of", "base", "weight", "sha256"),
    "lora_inspect.merged": ("base", "adapters", "multiplier"),
    "lora_inspect.combined": ("error", "rounding", "rule"),
    "lora_adapter_metadata": ("transformer.r", "transformer.lora_alpha", "r", "lora_alpha", "unet.rank_pattern"),
    "ss_tag_frequency": ("ink",),
    "ss_bucket_info": ("buckets", "mean_img_ar_error"),
    "ss_datasets": ("resolution", "batch_size_per_device", "subsets"),
    "ss_dataset_dirs": ("ink",),
    "training_info": ("step", "epoch"),
    "quant_map": ("q",),
}
# By `peft_type` the fields that say numbers.
CONFIG: dict[str, tuple[str, ...]] = {
    "LORA": ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "layers_to_transform", "layer_replication",
             "lora_dropout", "loftq_config", "trainable_token_indices", "qalora_group_size"),
    "LOHA": ("r", "alpha", "rank_pattern", "alpha_pattern"),
    "LOKR": ("r", "alpha", "decompose_factor", "rank_pattern", "alpha_pattern"),
    "OFT": ("r", "oft_block_size", "eps", "num_cayley_neumann_terms", "rank_pattern", "module_dropout"),
    "BOFT": ("boft_block_size", "boft_block_num", "boft_n_butterfly_factor"),
    "ADALORA": ("r", "init_r", "target_r", "lora_alpha", "rank_pattern"),
    "FOURIERFT": ("n_frequency", "scaling", "random_loc_seed", "n_frequency_pattern"),
    "VERA": ("r", "projection_prng_key", "d_initial"),
}  # fmt: skip
_MOST_DIMENSIONS = (40, 64, 65, 65, 66, 1000)
# What has broken most: more of it comes up than of all others.
_WORST = WHOLE[:2]


def change(source: random.Random, files: Files) -> None:
    """Has the adapters say odd numbers, and their tensors have odd numbers of dimensions."""
    for name, held in files.contents.items():
        if not name.startswith(("a.", "b.", "peft/", "merged.")):
            continue
        if isinstance(held, Json) and isinstance(held.value, dict):
            config(source, held.value)
        elif isinstance(held, Weights) and source.random() < 0.7:
            metadata(source, held)
        elif isinstance(held, Weights) and held.tensors:
            deepen(source, held.tensors)


def metadata(source: random.Random, weights: Weights) -> None:
    """Has the metadata say odd numbers where a trainer says a rank and an alpha, and others beside them."""
    held = weights.metadata = dict(weights.metadata or {})
    if source.random() < 0.7:
        held["ss_network_module"] = source.choice(_MODULES)
        for key in ("ss_network_dim", "ss_network_alpha"):
            held[key] = source.choice(_PLAIN) if source.random() < 0.6 else _text(source)
    for _ in range(source.choice((0, 0, 1, 2))):
        held[source.choice(_KEYS)] = _text(source)
    if source.random() < 0.4:
        names = source.sample(_OPTIONS, source.choice((1, 1, 2)))
        held["ss_network_args"] = spell({name: _option(source, name) for name in names})
    if source.random() < 0.3:
        key = source.choice(list(_OBJECTS))
        said = {name: _json(source) for name in _OBJECTS[key]}
        held[key] = spell([said] if key == "ss_datasets" else said)


def _option(source: random.Random, name: str) -> Any:
    """Of a network: as text, which is what trainers write, or as JSON has it."""
    text = _text(source)
    if name == "network_reg_dims":
        return f"to_q={text},.*={_text(source)}"
    return text if source.random() < 0.7 else _json(source)


def _text(source: random.Random) -> str:
    return source.choice(_WORST if source.random() < 0.4 else TEXTS)


def _json(source: random.Random) -> Any:
    return Raw(source.choice(_WORST)) if source.random() < 0.4 else source.choice(JSON)


def config(source: random.Random, held: dict[str, Any]) -> None:
    """Has a config say odd numbers where its method says some."""
    kind = held.get("peft_type")
    fields = CONFIG.get(kind if isinstance(kind, str) else "", CONFIG["LORA"])
    for name in source.sample(fields, source.choice((1, 1, 2))):
        number = _json(source)
        held[name] = {source.choice(("to_q", "q", "0", ".*")): number} if name.endswith("_pattern") else number


def deepen(source: random.Random, held: dict[str, Tensor]) -> None:
    """Gives the tensors of a module, or one of them, more dimensions of 1 than anything computes with."""
    name = source.choice(list(held))
    stem = name.partition(".")[0] if "_" in name.partition(".")[0] else name.rpartition(".")[0]
    own = [name] if source.random() < 0.3 else [other for other in held if other.startswith(stem)]
    total = source.choice(_MOST_DIMENSIONS)
    for other in own:
        dtype, shape, data = held[other]
        if math.prod(shape) > 1 or source.random() < 0.3:
            held[other] = dtype, (*shape, *(1 for _ in range(total - len(shape)))), data


def text(source: random.Random) -> str:
    """A number as a value of the metadata, or an object of one."""
    found = _text(source)
    return found if source.random() < 0.8 else json.dumps({"r": found})
