"""The rank requested from sd-scripts, compared with the tensors': layers saved in parts, and contradictions."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.checkpoint import read_row
from lora_inspect.files.strict_json import json_count
from lora_inspect.reading.metadata.trainers import is_musubi
from lora_inspect.reading.model.contribution import Contribution, Counted, Counting
from lora_inspect.reading.model.evidence import close, network_args, requested_alpha
from lora_inspect.reading.peft.regex import Refused, Steps
from lora_inspect.reading.state import Reading
from lora_inspect.schemes.record import MODEL
from lora_inspect.sentences import shortened

if TYPE_CHECKING:
    from lora_inspect.reading.peft.regex import Expression

# Of an option of ss_network_args; a list of ranks has a few hundred characters.
_LONGEST = 4_000
# What sd-scripts takes where no rank is asked for.
_DEFAULT_RANK = 4
# Options in whose names these words stand set ranks; those that are in no table below set them by rules of their own.
_RANK_WORDS = frozenset(("dim", "dims", "rank", "ranks"))
_OTHER_MEANINGS = ("conv_dim", "conv_rank", "rank_dropout", "rank_dropout_scale", "network_dim")
# Networks whose tensors do not have the asked rank, or are no product of two factors.
_OTHER_NETWORKS = ("networks.dylora", "networks.oft", "networks.oft_flux", "networks.control_net_lllite")


class RankOptions(NamedTuple):
    """The options of an sd-scripts network that set the ranks of layers, chosen by parts of their names.

    `typed` are options that give the rank of the layers with all the `words`; the first that is set and matches counts.
    `listed` is an option with a rank for each of the words. `split` gives the number of parts that split_qkv makes of a
    layer.
    """

    typed: tuple[tuple[str, tuple[str, ...]], ...] = ()
    listed: tuple[str, tuple[str, ...]] | None = None
    split: tuple[tuple[tuple[str, ...], int], ...] = ()


_QKV_AND_MLP = ((("double", "qkv"), 3), (("single", "linear1"), 4))

# Source: `create_network` and `LoRANetwork` of the files of these names in sd-scripts.
NETWORKS: Mapping[str, RankOptions] = {
    "networks.lora_flux": RankOptions(
        typed=(
            ("img_attn_dim", ("img_attn",)),
            ("txt_attn_dim", ("txt_attn",)),
            ("img_mlp_dim", ("img_mlp",)),
            ("txt_mlp_dim", ("txt_mlp",)),
            ("img_mod_dim", ("img_mod",)),
            ("txt_mod_dim", ("txt_mod",)),
            ("single_dim", ("single_blocks", "linear")),
            ("single_mod_dim", ("modulation",)),
        ),
        listed=("in_dims", ("_img_in", "_time_in", "_vector_in", "_guidance_in", "_txt_in")),
        split=_QKV_AND_MLP,
    ),
    "networks.lora_sd3": RankOptions(
        typed=(
            ("context_attn_dim", ("context_block", "attn")),
            ("context_mlp_dim", ("context_block", "mlp")),
            ("context_mod_dim", ("context_block", "adaLN_modulation")),
            ("x_attn_dim", ("x_block", "attn")),
            ("x_mlp_dim", ("x_block", "mlp")),
            ("x_mod_dim", ("x_block", "adaLN_modulation")),
        ),
        listed=(
            "emb_dims",
            ("context_embedder", "_t_embedder", "x_embedder", "y_embedder", "final_layer_adaLN_modulation",
             "final_layer_linear"),
        ),
        split=((("joint_blocks", "qkv"), 3),),
    ),
    "networks.lora_lumina": RankOptions(
        typed=(
            ("attn_dim", ("attention",)),
            ("mlp_dim", ("mlp",)),
            ("mod_dim", ("modulation",)),
            ("refiner_dim", ("refiner",)),
        ),
        listed=("embedder_dims", ("x_embedder", "t_embedder", "cap_embedder")),
        split=((("qkv",), 3),),
    ),
    "networks.lora_hunyuan_image": RankOptions(split=_QKV_AND_MLP),
}  # fmt: skip


class NamedRanks:
    """`network_reg_dims`: expressions for parts of module names, each with the rank of the modules that it matches."""

    def __init__(self, text: str, steps: Steps) -> None:
        self._pairs = [pair.strip().partition("=") for pair in text[:_LONGEST].split(",")]
        self._length = len(text)
        self._steps = steps
        self._expressions: dict[str, Expression] = {}

    def of(self, name: str) -> str | None:
        """Return the rank of the first matching expression; raises Refused if one is not compared."""
        if self._length > _LONGEST:
            raise Refused(
                f"network_reg_dims has {self._length:,} characters, and lora-inspect reads at most {_LONGEST:,}"
            )
        for pattern, _, rank in self._pairs:
            if pattern and self._fits(pattern.strip(), name):
                return rank
        return None

    def _fits(self, pattern: str, name: str) -> bool:
        from lora_inspect.reading.peft.regex import Expression

        try:
            if pattern not in self._expressions:
                self._expressions[pattern] = Expression(pattern, "anywhere", self._steps)
            return self._expressions[pattern].matches(name)
        except Refused as why:
            raise Refused(f"network_reg_dims '{shortened(pattern)}' {why}") from None


class RequestedRanks(NamedTuple):
    """The request to sd-scripts: rank and alpha (None if unknown), and the options that change the rank."""

    rank: int | None
    alpha: float | None
    args: Mapping[str, Any]
    options: RankOptions
    named: NamedRanks = NamedRanks("", Steps())

    @property
    def splits(self) -> bool:
        """True if layers are saved in parts; sd-scripts knows only this spelling of yes."""
        return bool(self.args.get("split_qkv") == "True")

    @property
    def by_name(self) -> bool:
        """True if the request may differ between modules of one kind, or depends on the content of their tensors."""
        options = (*(option for option, _ in self.options.typed), *(self.options.listed or ())[:1], "network_reg_dims")
        return self.splits or any(option in self.args for option in options)

    def counted(
        self, contribution: Contribution, alpha: float | None, read_row: Callable[[str, int], bytes]
    ) -> Counted:
        """Return how often the stored `alpha` of a LoRA counts.

        `read_row` returns a row of a matrix by name and number.
        """
        factors = contribution.factors
        if alpha is None or not alpha or contribution.rows or contribution.algorithm.name != "lora":
            return Counted()
        if not contribution.is_linear or len(factors["down"].shape) > 2:
            return Counted()
        name = contribution.module.key.replace(".", "_")
        is_model = contribution.module.component == MODEL
        rank = factors["down"].shape[0]
        try:
            expected = self._rank_of(name, is_model)
        except Refused as why:
            return Counted(1, f"the requested rank is unknown, as {why}")
        parts = self._parts_of(name) if is_model and self.splits else 1
        if expected is None:
            return Counted(1, _no_parts(rank, parts)) if parts > 1 else Counted()
        asked = float(expected) if self.alpha == 0 else self.alpha
        if rank == parts * expected:
            if parts > 1 and _is_block_diagonal(contribution, parts, read_row):
                return _count_parts(alpha, asked, parts, rank)
            return Counted()
        if rank < expected and rank == min(contribution.known_shape):
            return Counted()
        # Whoever changed rank and alpha together has kept the scale.
        if parts == 1 and asked is not None and close(alpha / rank, asked / expected):
            return Counted()
        return Counted(1, self._contradiction(alpha, asked, rank, expected, parts))

    def _rank_of(self, name: str, is_model: bool) -> int | None:
        """Return the requested rank of a module; None if it is unknown. Raises Refused."""
        named = self.named.of(name)
        if named is not None:
            return _whole(named)
        if not is_model:
            return self.rank
        if self.options.listed:
            option, words = self.options.listed
            given = str(self.args.get(option, ""))[:_LONGEST].strip().strip("[]").split(",", len(words))
            for word, number in zip(words, given, strict=False):
                if word in name and number.strip():
                    return _whole(number)
        for option, words in self.options.typed:
            if self.args.get(option) is not None and all(word in name for word in words):
                return _whole(self.args[option])
        return self.rank

    def _parts_of(self, name: str) -> int:
        return next((parts for words, parts in self.options.split if all(word in name for word in words)), 1)

    def _contradiction(self, alpha: float, asked: float | None, rank: int, expected: int, parts: int) -> str:
        of_parts = f" in each of {parts} parts (split_qkv)" if parts > 1 else ""
        means = f"alpha={alpha:.9g} means scale {alpha / rank:.4g}"
        if asked is not None:
            means += f", alpha={asked / expected * rank:.9g} the requested scale {asked / expected:.4g}"
        return f"the metadata says rank {expected}{of_parts}, but the tensors have rank {rank}: {means}"


def count_requested(reading: Reading) -> Reading:
    """Record how often alphas count, by the ranks that sd-scripts was asked for."""
    asked = read_asked_ranks(reading.checkpoint.metadata, reading.budget)
    if not asked:
        return reading
    counted = partial(asked.counted, read_row=partial(read_row, reading.checkpoint))
    return reading._replace(counting=Counting(counted, asked.by_name))


def read_asked_ranks(metadata: Mapping[str, str], steps: Steps) -> RequestedRanks | None:
    """Return the requested ranks in the metadata; None if sd-scripts did not set them so, or none are stated.

    Files that were written or rewritten by lora-inspect state their scale themselves. The `steps` are those of all
    patterns of the file.
    """
    module = metadata.get("ss_network_module", "")
    if not module.startswith("networks.") or module in _OTHER_NETWORKS:
        return None
    if any(key.startswith("lora_inspect.") for key in metadata) or "ss_rank_pattern" in metadata:
        return None
    # What is no text is spelled once: every module asks for it.
    args = {
        name: str(value) if isinstance(value, (list, dict)) else value for name, value in network_args(metadata).items()
    }
    options = RankOptions() if is_musubi(metadata) else NETWORKS.get(module, RankOptions())
    known = {option for option, _ in options.typed} | {options.listed[0] if options.listed else ""}
    known |= {*_OTHER_MEANINGS, "network_reg_dims"}
    others = (name for name, value in args.items() if name not in known and value is not None)
    if any(not _RANK_WORDS.isdisjoint(name.split("_")) for name in others):
        return None
    dim = metadata.get("ss_network_dim")
    rank = _DEFAULT_RANK if dim == "None" else _whole(dim)
    named = NamedRanks(str(args.get("network_reg_dims", "")), steps)
    return RequestedRanks(rank, requested_alpha(metadata), args, options, named)


def saves_parts(metadata: Mapping[str, str]) -> bool:
    """Return True if the file's layers may be saved in parts, so that their ranks do not explain the alphas."""
    asked = read_asked_ranks(metadata, Steps())
    return asked is not None and asked.splits and bool(asked.options.split)


def _whole(text: Any) -> int | None:
    """Return a rank that a layer may have, or None."""
    digits = str(text)
    try:
        return json_count(int(digits) if len(digits) < _LONGEST else 0)
    except ValueError:
        return None


def _no_parts(rank: int, parts: int) -> str:
    return (
        f"split_qkv saved it in {parts} parts of a rank that the metadata does not give, so its alpha may count "
        f"for rank {rank} or for the rank of a part"
    )


def _count_parts(alpha: float, asked: float | None, parts: int, rank: int) -> Counted:
    if asked is None or close(alpha, asked):
        return Counted(parts)
    if close(alpha, parts * asked):
        return Counted()  # some program has made up for the parts
    return Counted(
        1,
        f"split_qkv saved it in {parts} parts, but its alpha {alpha:g} is neither the requested "
        f"{asked:g} nor {parts} times that: alpha={alpha:.9g} means scale {alpha / rank:.4g}, "
        f"alpha={alpha * parts:.9g} {alpha * parts / rank:.4g}",
    )


def _is_block_diagonal(contribution: Contribution, parts: int, read_row: Callable[[str, int], bytes]) -> bool:
    """Return True if the first and the last row of up are 0 outside of their own part.

    A network that was made from a file's own ranks trains the whole layer, whatever its options say.
    """
    up = contribution.factors["up"]
    first, last = read_row(up.name, 0), read_row(up.name, up.shape[0] - 1)
    part = len(first) // parts
    size = max(len(first) // up.shape[1], 1)
    return _is_zero(first[part:], size) and _is_zero(last[: -part or None], size)


def _is_zero(data: bytes, size: int) -> bool:
    """Return True if all floating-point numbers of `size` bytes are 0, or the -0 that a negative factor leaves."""
    return data.count(0) + data[size - 1 :: size].count(0x80) == len(data)
