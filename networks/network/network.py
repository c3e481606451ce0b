"""The network: the modules of one model, and the calls of trainers and generators."""

import logging
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lora_inspect.reading.model.evidence import DORA_FLAG, RSLORA_FLAG

from ..files import saving, state_names
from ..files.file_names import module_name
from ..modules import adapter_module
from ..modules.base_forward import FastPaths
from ..modules.lora_module import LoRAModule
from ..modules.masks import RankMask
from ..modules.perturbation import mean_norms
from ..modules.pissa import NO_NORM, PissaModule
from ..network_args import PISSA, NetworkArguments, parse, read_keywords
from . import construction, summary, targets
from .network_weights import NetworkWeights
from .summary import OptimizerPart, PlusRatio, Rates
from .targets import EncoderTargets, Form, LeftOut, Patterns, Ranks, Splits, never_first, unmatched

logger = logging.getLogger(__name__)


class LoRANetwork(NetworkWeights):
    """The adapters of one model, and of its text encoders if `encoders` has them.

    Without `forms`, the patterns select layers inside blocks of the classes `target_replace_modules` (None: the whole
    model). Otherwise `forms` has the layers by module name, anywhere in the model. `modules_dim` and `modules_alpha`
    are such forms for modules without slices. Default patterns are the architecture's own, and `target_paths` are
    regular expressions of further blocks.

    `options` are all options in `network_args.NetworkArguments`. By default they are made of `network_args` and the
    keywords of musubi-tuner; its `conv_lora_dim` is `conv_dim`.

    The flags `use_rslora_flag` and `use_dora_flag` are buffers if at least one of them is true. A state dict without
    them can be loaded too.
    """

    # sd-scripts asks this where the model has a T5 encoder.
    train_t5xxl = False

    def __init__(
        self,
        target_replace_modules: Sequence[str] | None,
        prefix: str,
        text_encoders: Any,
        unet: nn.Module,
        multiplier: float = 1.0,
        lora_dim: int = 4,
        alpha: float | None = 1,
        dropout: float | None = None,
        rank_dropout: float | None = None,
        module_dropout: float | None = None,
        conv_lora_dim: int | None = None,
        conv_alpha: float | None = None,
        module_class: Any = LoRAModule,
        module_kwargs: Mapping[str, Any] | None = None,
        modules_dim: Mapping[str, int] | None = None,
        modules_alpha: Mapping[str, float | None] | None = None,
        exclude_patterns: Sequence[str] | None = None,
        include_patterns: Sequence[str] | None = None,
        verbose: bool = False,
        *,
        default_exclude_patterns: Sequence[str] = (),
        default_include_patterns: Sequence[str] = (),
        target_paths: Sequence[str] = (),
        forms: Mapping[str, Form] | None = None,
        encoders: Sequence[EncoderTargets] = (),
        options: NetworkArguments | None = None,
        **network_args: Any,
    ) -> None:
        super().__init__()
        if options is None:
            named = {
                "dropout": dropout,
                "rank_dropout": rank_dropout,
                "module_dropout": module_dropout,
                "conv_dim": conv_lora_dim,
                "conv_alpha": conv_alpha,
                "exclude_patterns": exclude_patterns,
                "include_patterns": include_patterns,
                "verbose": verbose,
            }
            options = parse({**named, **network_args})
        if modules_dim is not None:
            forms = {name: Form(rank, (modules_alpha or {}).get(name)) for name, rank in modules_dim.items()}
        if forms is None:
            lora_dim, alpha = construction.read_sizes(lora_dim, alpha)
        self.multiplier = multiplier
        self.lora_dim = lora_dim
        self.alpha = alpha
        self.use_rslora = options.use_rslora
        self.init_lora_weights = options.init_lora_weights
        self.rank_pattern = options.rank_pattern or {}
        self.alpha_pattern = options.alpha_pattern or {}
        self.lr_pattern = options.lr_pattern or {}
        self.save_format = options.save_format
        self.loraplus_lr_ratio = options.loraplus_lr_ratio
        self.loraplus_unet_lr_ratio = options.loraplus_unet_lr_ratio
        self.loraplus_text_encoder_lr_ratio = options.loraplus_text_encoder_lr_ratio
        construction.check_model(unet)
        construction.refuse_options(module_class, options)
        construction.refuse_slices_with_noise(options)
        self.module_class = construction.choose_class(module_class, options.init_lora_weights)
        self.module_kwargs = read_keywords("module_kwargs", module_kwargs or {})
        self.rank_mask = RankMask(options.tlora_min_rank, options.tlora_alpha) if options.use_tlora else None
        user_s = (options.exclude_patterns, options.include_patterns)
        ranks = Ranks(
            lora_dim,
            alpha,
            lora_dim if options.conv_dim is None else options.conv_dim,
            alpha if options.conv_alpha is None else options.conv_alpha,
            self.rank_pattern,
            self.alpha_pattern,
            options.enable_conv2d,
            options.layers,
        )
        self._layers = options.layers
        splits = Splits(options.split_dims or {}, options.split_qkv)
        if forms is None:
            patterns = Patterns(*user_s, default_exclude_patterns, default_include_patterns)
            wanted = [path for path, values in options.layers.items() if values.wanted]
            selection = targets.select(unet, target_replace_modules, patterns, ranks, splits, target_paths, wanted)
            in_encoders = [targets.select(one.model, one.classes, Patterns(*user_s), ranks, splits) for one in encoders]
        else:
            selection, *in_encoders = targets.select_each_named(unet, prefix, encoders, forms)
        if forms is None:
            every = [target for one in (selection, *in_encoders) for target in (*one.targets, *one.optional)]
            construction.refuse_ranks(self.module_class, every)
        targets.share_findings([selection, *in_encoders])
        adapted = [target.path for one in (selection, *in_encoders) for target in one.targets]
        for found, patterns_that in ((selection.unmatched, unmatched), (selection.idle, never_first)):
            if without_effect := patterns_that(self.lr_pattern, adapted):
                found["lr_pattern"] = without_effect
        prefixes = [prefix, *(one.prefix for one in encoders)]
        self.part_names = {prefix: state_names.part_name(unet)} | {
            one.prefix: f"text_encoder{f'_{at}' if at > 1 else ''}" for at, one in enumerate(encoders, 1)
        }
        self._paths = {
            module_name(own, target.path): target.path
            for own, one in zip(prefixes, (selection, *in_encoders), strict=True)
            for target in (*one.targets, *one.optional)
        }
        keywords = {
            "dropout": options.neuron_dropout,
            "rank_dropout": options.rank_dropout,
            "module_dropout": options.module_dropout,
            "use_rslora": options.use_rslora,
            "use_dora": options.use_dora,
            # Only where they are on, as not every class of modules knows them.
            **({"dora_conv": True} if options.dora_conv else {}),
            **({"rank_mask": self.rank_mask} if self.rank_mask else {}),
            **({"ggpo_sigma": options.ggpo_sigma, "ggpo_beta": options.ggpo_beta} if options.has_ggpo else {}),
            **self.module_kwargs,
        }
        create = partial(
            construction.create_modules,
            self.module_class,
            multiplier=multiplier,
            init_lora_weights=options.init_lora_weights,
            keywords=keywords,
        )
        self.left_out = LeftOut(prefix, selection, partial(create, prefix))
        self._frozen: list[Any] = []
        self.text_encoder_loras: list[Any] = []
        self.unet_loras: list[Any] = []
        # Text encoders first, as in sd-scripts, so that a seed draws the same factors.
        self._encoders = [create(one.prefix, found.targets) for one, found in zip(encoders, in_encoders, strict=True)]
        for modules in self._encoders:
            self.take(modules, of_encoders=True)
        self.take(create(prefix, selection.targets))
        self._nothing = "" if self.unet_loras else summary.why_nothing(selection, unet, target_replace_modules)
        self.fast_paths = FastPaths(unet, {target.module for target in selection.targets})
        self._reaches_a_layer = bool(selection.targets or selection.skipped or selection.unfit)
        self.use_dora = any(getattr(lora, "use_dora", False) for lora in self.loras)
        if self.use_rslora or self.use_dora:
            self.register_buffer(RSLORA_FLAG, torch.tensor(self.use_rslora, dtype=torch.bool, device="cpu"))
            self.register_buffer(DORA_FLAG, torch.tensor(self.use_dora, dtype=torch.bool, device="cpu"))
        # What the options were is not known of a network that was made from weights.
        if forms is None:
            is_lora = self.module_class in (LoRAModule, PissaModule)
            own_ranks = {re.escape(path): own.rank for path, own in options.layers.items() if own.rank}
            own_alphas = {re.escape(path): own.alpha for path, own in options.layers.items() if own.alpha}
            self.option_metadata = saving.option_metadata(
                self.init_lora_weights if is_lora else None,
                {**self.rank_pattern, **{path: rank for path, rank in own_ranks.items() if rank != lora_dim}},
                {**self.alpha_pattern, **{path: own for path, own in own_alphas.items() if own != alpha}},
            )
        if self.rank_mask:
            self.option_metadata |= saving.tlora_metadata(options.tlora_min_rank, options.tlora_alpha)
            summary.log_tlora(self.unet_loras, options.tlora_min_rank)
        if options.has_ggpo:
            summary.log_ggpo(self.loras)
        if options.use_dora:
            summary.log_dora(self.loras)
        summary.log_selection(self.unet_loras, selection, options.verbose)
        summary.log_idle(self.unet_loras, selection, options)

    def prepare_network(self, args: Any) -> None:
        """Check a trainer's own options before `apply_to`.

        Raises ValueError for `scale_weight_norms` with PiSSA, and for several rates with an optimiser that takes one.
        Otherwise the first step would find these errors.
        """
        if self._is_pissa and getattr(args, "scale_weight_norms", None):
            raise ValueError(NO_NORM)
        rate = getattr(args, "learning_rate", None)
        trains_encoders = not getattr(args, "network_train_unet_only", False)
        parts = self._parts(
            getattr(args, "unet_lr", None) or rate, getattr(args, "text_encoder_lr", None) or rate, trains_encoders
        )
        summary.check_optimizer(getattr(args, "optimizer_type", None) or "", parts)

    def set_multiplier(self, multiplier: float) -> None:
        """Set the multiplier of every module; at 0 the model is the base, bit for bit."""
        self.multiplier = multiplier
        for lora in self.loras:
            lora.multiplier = multiplier

    def set_enabled(self, is_enabled: bool) -> None:
        """Switch every module on or off; off, the model is the base, bit for bit."""
        for lora in self.loras:
            lora.enabled = is_enabled

    def apply_to(self, text_encoders: Any, unet: Any, apply_text_encoder: bool = True, apply_unet: bool = True) -> None:
        """Put every module into its base layer's forward.

        Raises RuntimeError if there is none to train. Modules of a part that is not applied are taken out of the
        network.
        """
        if not apply_unet:
            self._take_out(self.unet_loras)
            self.unet_loras = []
        if not apply_text_encoder:
            self._untrained |= self._take_out(self.text_encoder_loras)
            self.text_encoder_loras, self._encoders = [], []
        if not self.loras:
            raise RuntimeError(f"No LoRA modules found: {self._nothing or 'apply_unet is False'}")
        if self.init_lora_weights == PISSA:
            logger.info(f"{len(self.loras)} weights to decompose; init_lora_weights=pissa_niter_4 is much faster")
        given = any(encoder is not None for encoder in construction.listed_encoders(text_encoders))
        if apply_text_encoder and given and not self.text_encoder_loras:
            logger.warning("this network module does not adapt text encoders")
        for lora in self.loras:
            lora.apply_to()
        self.fast_paths.close()
        of_encoders = f", {len(self.text_encoder_loras)} to text encoders" if self.text_encoder_loras else ""
        logger.info(f"{len(self.loras)} LoRA modules applied{of_encoders}")

    def _take_out(self, loras: Sequence[Any]) -> set[str]:
        for lora in loras:
            delattr(self, lora.lora_name)
        return {lora.lora_name for lora in loras}

    def check_reach(self) -> None:
        """Raise RuntimeError, with the classes that were looked for, if the model has none of their layers."""
        if not self._reaches_a_layer:
            raise RuntimeError(f"No LoRA modules found: {self._nothing}")

    def remove(self) -> None:
        """Take every module out of its base layer's forward, which is then as before `apply_to`.

        Raises RuntimeError, and takes none out, if another network or a hook has wrapped a layer's forward since.
        `apply_to` puts the modules back.
        """
        for lora in self.loras:
            lora.check_removable()
        for lora in self.loras:
            lora.remove()
        self.fast_paths.open()

    def set_loraplus_lr_ratio(
        self,
        loraplus_lr_ratio: float | None,
        loraplus_unet_lr_ratio: float | None = None,
        loraplus_text_encoder_lr_ratio: float | None = None,
    ) -> None:
        """Set the learning rate of the up factors as a multiple of the others'; None for the same.

        `loraplus_unet_lr_ratio` goes before `loraplus_lr_ratio` in the model. Text encoders have only their own ratio.
        Raises ValueError for a ratio if the algorithm has no such factors.
        """
        ratios = NetworkArguments(
            loraplus_lr_ratio=loraplus_lr_ratio,
            loraplus_unet_lr_ratio=loraplus_unet_lr_ratio,
            loraplus_text_encoder_lr_ratio=loraplus_text_encoder_lr_ratio,
        )
        construction.refuse_options(self.module_class, ratios)
        self.loraplus_lr_ratio = loraplus_lr_ratio
        self.loraplus_unet_lr_ratio = loraplus_unet_lr_ratio
        self.loraplus_text_encoder_lr_ratio = loraplus_text_encoder_lr_ratio

    def prepare_optimizer_params(
        self, unet_lr: float | None = 1e-4, *, text_encoder_lr: Any = None, **kwargs: Any
    ) -> tuple[list[dict[str, Any]], list[str]]:
        """Return (parameter groups, descriptions), and make every parameter with a rate trainable.

        Both lists have the same length. `text_encoder_lr` is one rate for all text encoders, or a list of their rates;
        its last one counts for the rest. None or an empty list stands for `unet_lr`.
        """
        self.is_grouped = True
        parts = self._parts(unet_lr, unet_lr if text_encoder_lr in (None, []) else text_encoder_lr)
        self._frozen = [lora for part in parts for lora in part.modules if not part.rates.of(lora.lora_name)]
        self.prepare_grad_etc()
        summary.log_plus_ratios(parts, {option: getattr(self, option) for option in summary.PLUS_RATIOS})
        groups: list[dict[str, Any]] = []
        descriptions: list[str] = []
        for part in parts:
            part_groups, part_descriptions = summary.build_groups(part)
            groups += part_groups
            descriptions += part_descriptions
        return groups, descriptions

    def prepare_optimizer_params_with_multiple_te_lrs(
        self, text_encoder_lr: Any, unet_lr: float | None, default_lr: float | None
    ) -> tuple[list[dict[str, Any]], list[str]]:
        """Return the same, for the call of sd-scripts."""
        rate = default_lr if unet_lr is None else unet_lr
        return self.prepare_optimizer_params(
            rate, text_encoder_lr=default_lr if text_encoder_lr in (None, []) else text_encoder_lr
        )

    def _parts(self, unet_lr: float | None, text_encoder_lr: Any, trains_encoders: bool = True) -> list[OptimizerPart]:
        """Return the modules of each text encoder and of the model, with their learning rates."""
        encoders = self._encoders if trains_encoders else []
        given = list(text_encoder_lr) if isinstance(text_encoder_lr, list | tuple) else [text_encoder_lr]
        rates = [given[min(at, len(given) - 1)] for at in range(len(encoders))]
        name = "textencoder {}" if len(encoders) > 1 else "textencoder"
        of_encoders = PlusRatio("loraplus_text_encoder_lr_ratio", self.loraplus_text_encoder_lr_ratio)
        of_model = PlusRatio("loraplus_unet_lr_ratio", self.loraplus_unet_lr_ratio)
        if of_model.ratio is None:
            of_model = PlusRatio("loraplus_lr_ratio", self.loraplus_lr_ratio)
        parts = [
            OptimizerPart(name.format(at + 1), list(modules.values()), self._rates(rate), of_encoders)
            for at, (modules, rate) in enumerate(zip(encoders, rates, strict=True))
        ]
        return [*parts, OptimizerPart("unet", self.unet_loras, self._rates(unet_lr), of_model)]

    def _rates(self, trainer_s: float | None) -> Rates:
        return Rates(trainer_s, self.lr_pattern, self._paths, self._layers)

    def enable_gradient_checkpointing(self) -> None:
        """Do nothing: the factors keep only the small hidden activations."""

    def prepare_grad_etc(self, *args: Any) -> None:
        """Make every parameter trainable, except the ones left out by `prepare_optimizer_params`.

        Nothing would reset their gradients, which clipping counts. The models that trainers pass are not touched.
        """
        self.requires_grad_(True)
        for lora in self._frozen:
            lora.requires_grad_(False)

    def on_epoch_start(self, *args: Any) -> None:
        """Switch to training mode."""
        self.train()

    def on_step_start(self, *args: Any) -> None:
        """Do nothing."""

    def update_grad_norms(self) -> None:
        """Update the norms of gradients for GGPO: after the backward pass, before the optimiser's step.

        Without GGPO, and in evaluation mode, it does nothing.
        """
        for lora in self._perturbed:
            lora.update_grad_norms()

    def update_norms(self) -> None:
        """Update the norms of weights for GGPO: after `update_grad_norms`.

        Without GGPO, and in evaluation mode, it does nothing.
        """
        for lora in self._perturbed:
            lora.update_norms()

    def weight_norms(self) -> Tensor | None:
        """Return the mean row norm of each up @ down with GGPO, (modules, 1), or None before `update_norms`."""
        return mean_norms([lora.perturbation for lora in self._perturbed], "weight_norms")

    def grad_norms(self) -> Tensor | None:
        """Return the mean row norm of the gradients, (modules, 1), or None before `update_grad_norms`."""
        return mean_norms([lora.perturbation for lora in self._perturbed], "gradient_norms")

    def combined_weight_norms(self) -> Tensor | None:
        """Return the mean row norm of base and change together, (modules, 1), or None before `update_norms`."""
        return mean_norms([lora.perturbation for lora in self._perturbed], "combined_norms")

    @property
    def _perturbed(self) -> list[Any]:
        return [lora for lora in self.loras if getattr(lora, "perturbation", None) is not None]

    def train(self, mode: bool = True) -> "LoRANetwork":
        """Switch to training or evaluation mode, and forget timesteps of the other mode."""
        if mode != self.training:
            self.clear_timestep_mask()
        super().train(mode)
        return self

    def set_timestep_mask(self, timesteps: Any, max_timestep: float = 1.0) -> None:
        """Set the timesteps of the next forward, one for each sample, for `use_tlora`.

        Without `use_tlora` it does nothing. Raises ValueError for timesteps that are not from 0 to `max_timestep`.
        """
        if self.rank_mask is not None:
            self.rank_mask.set(timesteps, max_timestep)

    def clear_timestep_mask(self) -> None:
        """Forget the timesteps: in evaluation mode all ranks act."""
        if self.rank_mask is not None:
            self.rank_mask.clear()

    def update_rank_mask_from_timesteps(self, timesteps: Any, max_timestep: float = 1000, device: Any = None) -> None:
        """Call `set_timestep_mask`, under the name of Takenoko."""
        self.set_timestep_mask(timesteps, max_timestep)

    def clear_rank_mask(self) -> None:
        """Call `clear_timestep_mask`, under the name of Takenoko."""
        self.clear_timestep_mask()

    def get_trainable_params(self) -> list[nn.Parameter]:
        """Return every parameter that is trained."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def apply_max_norm_regularization(self, max_norm_value: float, device: Any = None) -> tuple[int, float, float]:
        """Return (modules shrunk, mean norm, largest norm) of the trained modules; see `limit_norms`."""
        return adapter_module.limit_norms([lora for lora in self.loras if lora not in self._frozen], max_norm_value)
