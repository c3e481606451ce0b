"""The network: the modules of one model, and the calls that trainers and generators make."""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from lora_inspect.reading.model.evidence import DORA_FLAG, RSLORA_FLAG

from ..files import saving
from ..files.file_names import module_name
from ..modules import adapter_module
from ..modules.base_forward import FastPaths
from ..modules.lora_module import LoRAModule
from ..modules.masks import RankMask
from ..modules.pissa import NO_NORM, PissaModule
from ..network_args import PISSA, NetworkArguments, parse, read_keywords
from . import construction, summary, targets
from .network_weights import NetworkWeights
from .summary import Rates
from .targets import Form, LeftOut, Patterns, Ranks, Splits, never_first, unmatched

logger = logging.getLogger(__name__)


class LoRANetwork(NetworkWeights):
    """The adapters of one model; text encoders are never adapted.

    The layers are those that the patterns let through inside blocks of the classes `target_replace_modules` (None:
    of the whole model), or those that `forms` has by module name, wherever in the model they are; `modules_dim` and
    `modules_alpha` are the same of modules that are whole. Default patterns are the architecture's own, and
    `target_paths` are regular expressions of blocks beside those of the classes.

    `options` are all that is said in `network_args.NetworkArguments`. Without them they are made of the keywords that
    musubi-tuner has for them, of which `conv_lora_dim` is `conv_dim`, and of `network_args`.

    The flags `use_rslora_flag` and `use_dora_flag` are buffers where at least one of them is true. A state dict
    without them loads all the same.
    """

    # What sd-scripts asks of a network where the model has a T5 encoder: text encoders are never adapted here.
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
        construction.check_model(unet)
        construction.refuse_options(module_class, options)
        self.module_class = construction.choose_class(module_class, options.init_lora_weights)
        self.module_kwargs = read_keywords("module_kwargs", module_kwargs or {})
        self.rank_mask = RankMask(options.tlora_min_rank, options.tlora_alpha) if options.use_tlora else None
        if forms is None:
            construction.check_sizes(lora_dim, alpha)
            defaults = (default_exclude_patterns, default_include_patterns)
            selection = targets.select(
                unet,
                target_replace_modules,
                Patterns(options.exclude_patterns, options.include_patterns, *defaults),
                Ranks(
                    lora_dim,
                    alpha,
                    lora_dim if options.conv_dim is None else options.conv_dim,
                    alpha if options.conv_alpha is None else options.conv_alpha,
                    self.rank_pattern,
                    self.alpha_pattern,
                    options.enable_conv2d,
                ),
                Splits(options.split_dims or {}, options.split_qkv),
                target_paths,
            )
            construction.refuse_ranks(self.module_class, (*selection.targets, *selection.optional))
        else:
            selection = targets.select_named(unet, prefix, forms)
        adapted = [target.path for target in selection.targets]
        for found, patterns_that in ((selection.unmatched, unmatched), (selection.idle, never_first)):
            if without_effect := patterns_that(self.lr_pattern, adapted):
                found["lr_pattern"] = without_effect
        self._paths = {
            module_name(prefix, target.path): target.path for target in (*selection.targets, *selection.optional)
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
            **self.module_kwargs,
        }
        create = partial(
            construction.create_modules,
            self.module_class,
            prefix,
            multiplier=multiplier,
            init_lora_weights=options.init_lora_weights,
            keywords=keywords,
        )
        self.left_out = LeftOut(prefix, selection, create)
        self._frozen: list[Any] = []
        self.text_encoder_loras: list[Any] = []
        self.unet_loras: list[Any] = []
        self.take(create(selection.targets))
        self._nothing = "" if self.unet_loras else summary.why_nothing(selection, unet, target_replace_modules)
        self.fast_paths = FastPaths(unet, {target.module for target in selection.targets})
        self._reaches_a_layer = bool(selection.targets or selection.skipped or selection.unfit)
        self.use_dora = any(getattr(lora, "use_dora", False) for lora in self.unet_loras)
        if self.use_rslora or self.use_dora:
            self.register_buffer(RSLORA_FLAG, torch.tensor(self.use_rslora, dtype=torch.bool, device="cpu"))
            self.register_buffer(DORA_FLAG, torch.tensor(self.use_dora, dtype=torch.bool, device="cpu"))
        # What the options were is not known of a network that was made from weights.
        if forms is None:
            is_lora = self.module_class in (LoRAModule, PissaModule)
            self.option_metadata = saving.option_metadata(
                self.init_lora_weights if is_lora else None, self.rank_pattern, self.alpha_pattern
            )
        if self.rank_mask:
            self.option_metadata |= saving.tlora_metadata(options.tlora_min_rank, options.tlora_alpha)
            summary.log_tlora(self.unet_loras, options.tlora_min_rank)
        if options.use_dora:
            summary.log_dora(self.unet_loras)
        summary.log_selection(self.unet_loras, selection, options.verbose)
        summary.log_idle(self.unet_loras, selection, options)

    def prepare_network(self, args: Any) -> None:
        """Called by trainers before `apply_to`, with their own options, of which two have to fit.

        Raises ValueError for `scale_weight_norms` with PiSSA and for several rates with an optimiser that takes one,
        which are else found out at the first step.
        """
        if self._is_pissa and getattr(args, "scale_weight_norms", None):
            raise ValueError(NO_NORM)
        rate = getattr(args, "unet_lr", None) or getattr(args, "learning_rate", None)
        rates = Rates(rate, self.lr_pattern, self._paths)
        optimizer = getattr(args, "optimizer_type", None) or ""
        summary.check_optimizer(optimizer, self.unet_loras, rates, self.loraplus_lr_ratio)

    def set_multiplier(self, multiplier: float) -> None:
        """The multiplier of every module; at 0 the model is the base, bit for bit."""
        self.multiplier = multiplier
        for lora in self.unet_loras:
            lora.multiplier = multiplier

    def set_enabled(self, is_enabled: bool) -> None:
        """Switches every module on or off; off, the model is the base, bit for bit."""
        for lora in self.unet_loras:
            lora.enabled = is_enabled

    def apply_to(self, text_encoders: Any, unet: Any, apply_text_encoder: bool = True, apply_unet: bool = True) -> None:
        """Puts every module into its base layer's forward. Raises RuntimeError where there is none to train."""
        if not apply_unet:
            for lora in self.unet_loras:
                delattr(self, lora.lora_name)
            self.unet_loras = []
        if not self.unet_loras:
            raise RuntimeError(f"No LoRA modules found: {self._nothing or 'apply_unet is False'}")
        if self.init_lora_weights == PISSA:
            logger.info(f"{len(self.unet_loras)} weights to decompose; init_lora_weights=pissa_niter_4 is much faster")
        if apply_text_encoder and any(encoder is not None for encoder in _as_list(text_encoders)):
            logger.warning("this package does not adapt text encoders")
        for lora in self.unet_loras:
            lora.apply_to()
        self.fast_paths.close()
        logger.info(f"{len(self.unet_loras)} LoRA modules applied")

    def check_reach(self) -> None:
        """Raises RuntimeError, with the classes that were looked for, where the model has none of their layers."""
        if not self._reaches_a_layer:
            raise RuntimeError(f"No LoRA modules found: {self._nothing}")

    def remove(self) -> None:
        """Takes every module out of its base layer's forward, which is then as before `apply_to`.

        Raises RuntimeError, and takes none out, where something has been put around a layer's forward since: another
        network, or a hook. `apply_to` puts the modules back.
        """
        for lora in self.unet_loras:
            lora.check_removable()
        for lora in self.unet_loras:
            lora.remove()
        self.fast_paths.open()

    def set_loraplus_lr_ratio(self, loraplus_lr_ratio: float | None) -> None:
        """The learning rate of the up factors as a multiple of the others'; None for the same.

        Raises ValueError for a ratio where the algorithm has no such factors.
        """
        construction.refuse_options(self.module_class, NetworkArguments(loraplus_lr_ratio=loraplus_lr_ratio))
        self.loraplus_lr_ratio = loraplus_lr_ratio

    def prepare_optimizer_params(
        self, unet_lr: float | None = 1e-4, **kwargs: Any
    ) -> tuple[list[dict[str, Any]], list[str]]:
        """(parameter groups, their descriptions), of equal length; makes every parameter trainable that has a rate."""
        self.is_grouped = True
        rates = Rates(unet_lr, self.lr_pattern, self._paths)
        self._frozen = [lora for lora in self.unet_loras if not rates.of(lora.lora_name)]
        self.prepare_grad_etc()
        return summary.build_groups(self.unet_loras, "unet", rates, self.loraplus_lr_ratio)

    def prepare_optimizer_params_with_multiple_te_lrs(
        self, text_encoder_lr: Any, unet_lr: float | None, default_lr: float | None
    ) -> tuple[list[dict[str, Any]], list[str]]:
        """The same, as sd-scripts calls it."""
        return self.prepare_optimizer_params(default_lr if unet_lr is None else unet_lr)

    def enable_gradient_checkpointing(self) -> None:
        """Nothing to do: the factors keep only the small hidden activations."""

    def prepare_grad_etc(self, *args: Any) -> None:
        """Makes every parameter trainable, but for those that `prepare_optimizer_params` has left out.

        Nothing would reset their gradients, which clipping counts. The models that trainers pass are not touched.
        """
        self.requires_grad_(True)
        for lora in self._frozen:
            lora.requires_grad_(False)

    def on_epoch_start(self, *args: Any) -> None:
        """Training mode."""
        self.train()

    def on_step_start(self, *args: Any) -> None:
        """Nothing to do."""

    def train(self, mode: bool = True) -> "LoRANetwork":
        """Training or evaluation mode; the timesteps of the one say nothing of the other."""
        if mode != self.training:
            self.clear_timestep_mask()
        super().train(mode)
        return self

    def set_timestep_mask(self, timesteps: Any, max_timestep: float = 1.0) -> None:
        """The timesteps of the next forward, one for each sample, for `use_tlora`; without it nothing to do.

        Raises ValueError for timesteps that are not from 0 to `max_timestep`.
        """
        if self.rank_mask is not None:
            self.rank_mask.set(timesteps, max_timestep)

    def clear_timestep_mask(self) -> None:
        """Forgets the timesteps: in evaluation mode all ranks act."""
        if self.rank_mask is not None:
            self.rank_mask.clear()

    def update_rank_mask_from_timesteps(self, timesteps: Any, max_timestep: float = 1000, device: Any = None) -> None:
        """`set_timestep_mask`, as Takenoko calls it."""
        self.set_timestep_mask(timesteps, max_timestep)

    def clear_rank_mask(self) -> None:
        """`clear_timestep_mask`, as Takenoko calls it."""
        self.clear_timestep_mask()

    def get_trainable_params(self) -> list[nn.Parameter]:
        """Every parameter that is trained."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def apply_max_norm_regularization(self, max_norm_value: float, device: Any = None) -> tuple[int, float, float]:
        """(modules shrunk, mean norm, largest norm) of the modules that are trained; see `max_norm.limit_norms`."""
        return adapter_module.limit_norms(
            [lora for lora in self.unet_loras if lora not in self._frozen], max_norm_value
        )


def _as_list(encoders: Any) -> Sequence[Any]:
    return encoders if isinstance(encoders, list | tuple) else [encoders]
