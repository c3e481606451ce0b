"""The modules of mlx-lm: the kind of each layer, and the statements of its config.

A layer's kind is in no suffix. Factors of several experts have a dimension more. The magnitude, the name, or the shape
of the weight in a base distinguishes an Embedding from a Linear.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from lora_inspect.algorithms.mlx import EMBEDDING, NAME, NAMES, mlx_experts
from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.files.discovery import MLX_WEIGHTS
from lora_inspect.files.strict_json import json_number
from lora_inspect.maths.dora import INPUT
from lora_inspect.maths.scaling import scale_of as scale_of_alpha
from lora_inspect.reading.mlx_config import PARAMETERS, TYPE, MlxConfig, find_mlx_config, scale_of
from lora_inspect.reading.model.contribution import Contribution, Module
from lora_inspect.reading.model.evidence import DoraClaim, Evidence, LoraFacts, RawProblem
from lora_inspect.reading.model.settings import Settings
from lora_inspect.reading.scale.scale_records import TRAINED_SCALE
from lora_inspect.reading.state import OwnRules, Reading
from lora_inspect.schemes.mlx import MLX

if TYPE_CHECKING:
    from lora_inspect.reading.keys.claims import Claims

# What the models of mlx-lm 0.32.2 call their Embeddings.
_EMBEDDINGS = frozenset(
    (
        "embed", "embed_in", "embed_tokens", "embed_tokens_per_layer", "embedding", "embeddings",
        "position_embedding_table", "tok_embeddings", "token_embeddings", "word_embeddings", "wpe", "wte",
    )
)  # fmt: skip
_WAY_OUT = "fetch the file again, or write it again with the program that trained it"


class MlxRules(OwnRules):
    """The rules of mlx-lm for one file."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._config = find_mlx_config(checkpoint)

    @property
    def config(self) -> MlxConfig | None:
        """The config of mlx-lm next to the file."""
        return self._config

    def claimed(self, claims: "Claims") -> "Claims":
        """Return the claims with each module of MLX as one of its kind of layer."""
        if not any(contribution.algorithm.name == NAME for _, contribution in claims.computed):
            return claims
        modules: dict[str, Module] = {}
        findings = list(claims.findings)
        for key, module in claims.modules.items():
            kinds = [_of_its_kind(c) if c.algorithm.name == NAME else c for c in module.contributions]
            findings += _misplaced(key, kinds)
            modules[key] = module._replace(contributions=tuple(kinds))
        return claims._replace(modules=modules, findings=tuple(findings))

    def scaled(self, modules: Mapping[str, Module], settings: Settings) -> dict[str, Module]:
        """Return the modules with the scales of those of MLX, which no alpha holds; the others are unchanged."""

        def of_config(contribution: Contribution) -> Contribution:
            if contribution.algorithm.name not in NAMES:
                return contribution
            rank = contribution.known_rank
            scale, why = scale_of(self._config, rank)
            alpha = settings.alpha if scale is None else None
            if alpha is not None:
                scale, why = scale_of_alpha(alpha, rank, False), f"{alpha:g}/{rank}"
            return contribution._replace(rank=rank, alpha=alpha, scale=scale, rslora=False, why=why)

        return {
            name: module._replace(contributions=tuple(map(of_config, module.contributions)))
            for name, module in modules.items()
        }

    def dora(self, facts: Sequence[LoraFacts], claims: "Claims") -> list[DoraClaim]:
        """Return the config's statement about DoRA of the modules of MLX."""
        config = self._config
        keys = {key for key, module in claims.modules.items() if module.name.scheme == MLX.name}
        if config is None or config.dora is None or not keys:
            return []
        value, says = config.dora
        own = [one for one in facts if not keys.isdisjoint(one.places)]
        return [DoraClaim("adapter_config", config.where, value, own, says)]

    def about(self, contributions: Iterable[Contribution]) -> Iterator[Evidence]:
        """Yield the config's statement about the scale, and the number of layers with experts."""
        config = self._config
        own = [contribution for contribution in contributions if contribution.algorithm.name in NAMES]
        if config and own and (scale := json_number(config.parameters.get("scale"))) is not None:
            alpha = json_number(config.parameters.get("alpha"))
            unused = f"; mlx-lm does not use the alpha of {alpha:g} there" if alpha is not None else ""
            yield Evidence("scale", f"{PARAMETERS}.scale is {scale:g}{unused}", config.where)
        counts: dict[int, int] = {}
        for experts in (contribution.algorithm.experts for contribution in own if contribution.algorithm.experts):
            counts[experts] = counts.get(experts, 0) + 1
        for experts, count in counts.items():
            yield Evidence("experts", f"{count} layers have the factors of {experts} experts each", "shapes")

    def trained_otherwise(self, contributions: Iterable[Contribution]) -> Iterator[RawProblem]:
        """Yield problems of scales that early versions of mlx-lm multiplied by alpha/rank, unlike later ones."""
        config = self._config
        own = [contribution for contribution in contributions if contribution.algorithm.name in NAMES]
        if config is None or not own or own[0].scale is None or (ratio := config.trained_ratio) is None:
            return
        trained = "trained" if config.is_early else "would have trained"
        yield RawProblem(
            TRAINED_SCALE,
            f"mlx-lm up to 0.14.1 {trained} this at scale · alpha/rank, {own[0].scale * ratio:g}, and later "
            f"versions read {own[0].scale:g} from its config; a multiplier of {ratio:g} gives "
            + ("the trained scale" if config.is_early else "the trained scale if one of those trained it"),
            tuple(contribution.module.key for contribution in own[:5]),
        )

    def no_adapter(self, files: Sequence[str]) -> Iterator[RawProblem]:
        """Yield problems of mlx-lm files that hold the weights after training, and no adapter."""
        config = self._config
        name = os.path.basename(files[0]) if files else ""
        if config is None or not config.is_full or not name.endswith(f"{MLX_WEIGHTS}.safetensors"):
            return
        yield RawProblem(
            "no-adapter",
            f"{config.where} says {TYPE} full: the file holds whole weights of trained layers, which "
            "replace those of the base, and no adapter; put them into the base with mlx_lm.fuse",
        )


def _of_its_kind(contribution: Contribution) -> Contribution:
    """Return the contribution with the algorithm of its kind of layer, as far as the file shows it."""
    up = contribution.factors["up"].shape
    if len(up) == 3:
        return contribution._replace(algorithm=mlx_experts(up[0]))
    magnitude, (out, inputs) = contribution.magnitude, contribution.shape
    if out != inputs and magnitude:
        return contribution._replace(algorithm=EMBEDDING) if magnitude.axis == INPUT else contribution
    if contribution.module.body.rpartition(".")[2] not in _EMBEDDINGS:
        return contribution
    return contribution._replace(algorithm=EMBEDDING, magnitude=magnitude._replace(axis=INPUT) if magnitude else None)


def _misplaced(key: str, contributions: Sequence[Contribution]) -> Iterator[RawProblem]:
    """Yield problems of tensors next to factors of MLX that have no place there."""
    others = [contribution for contribution in contributions if contribution.algorithm.name not in NAMES]
    if others and len(others) < len(contributions):
        keys = tuple(info.name for info in others[0].factors.values())
        yield RawProblem(
            "duplicate-tensor",
            f"{key} has {others[0].algorithm.title} next to factors of MLX; leave one of them out",
            keys,
        )
    for magnitude in (one.magnitude for one in contributions if one.algorithm.experts and one.magnitude):
        says = f"{magnitude.info.name} is a magnitude of experts, and mlx-lm defines none for experts; {_WAY_OUT}"
        yield RawProblem("magnitude-shape", says, (magnitude.info.name,))


def read_rules(reading: Reading) -> Reading:
    """Read mlx-lm's config, and claim each module of MLX as one of its kind of layer."""
    rules = MlxRules(reading.checkpoint)
    return reading._replace(rules=rules, claims=rules.claimed(reading.claims))
