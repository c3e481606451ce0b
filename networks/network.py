"""The network: the modules of one model, and the calls that trainers and generators make."""

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lora_inspect.evidence import DORA_FLAG, RSLORA_FLAG
from lora_inspect.scaling import neutral_alpha

from . import loading, max_norm, optimizer_groups, reading, saving, targets
from .arguments import read_patterns
from .layers import LoRAModule
from .targets import Patterns, Ranks, Selection, Target

logger = logging.getLogger(__name__)

DORA_OBSTACLES = ("non-Linear", "split_dims", "dropout", "rank_dropout")


class LoRANetwork(nn.Module):
    """The adapters of one model; text encoders are never adapted.

    The layers are those that the patterns let through inside blocks of the classes `target_replace_modules` (None:
    of the whole model), or, with `modules_dim`, those that it names, wherever in the model they are.
    `modules_dim`, `modules_alpha` and `modules_split` hold rank, alpha and split_dims by module name; default
    patterns are the architecture's own. `conv_lora_dim` and `conv_alpha` are `lora_dim` and `alpha` where None.

    The flags `use_rslora_flag` and `use_dora_flag` are buffers where at least one of them is true. A state dict
    without them loads all the same.
    """

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
        use_rslora: bool = False,
        use_dora: bool = False,
        default_exclude_patterns: Sequence[str] = (),
        default_include_patterns: Sequence[str] = (),
        modules_split: Mapping[str, Sequence[int] | None] | None = None,
    ) -> None:
        super().__init__()
        self.multiplier = multiplier
        self.lora_dim = lora_dim
        self.alpha = alpha
        self.dropout = dropout
        self.rank_dropout = rank_dropout
        self.module_dropout = module_dropout
        self.module_class = module_class
        self.module_kwargs = dict(module_kwargs or {})
        self.use_rslora = use_rslora
        self.loraplus_lr_ratio: float | None = None
        # The scale rule is then the user's own choice, and weights that say nothing of it need not agree.
        self.rslora_settled = False
        if modules_dim is None:
            ranks = Ranks(
                lora_dim,
                alpha,
                lora_dim if conv_lora_dim is None else conv_lora_dim,
                alpha if conv_alpha is None else conv_alpha,
            )
            patterns = Patterns(
                read_patterns("exclude_patterns", list(exclude_patterns or ())),
                read_patterns("include_patterns", list(include_patterns or ())),
                default_exclude_patterns,
                default_include_patterns,
            )
            selection = targets.select(unet, target_replace_modules, patterns, ranks)
        else:
            selection = targets.select_named(unet, prefix, modules_dim, modules_alpha or {}, modules_split or {})
        self.text_encoder_loras: list[Any] = []
        self.unet_loras: list[Any] = self._create(prefix, selection.targets, use_dora)
        self.use_dora = any(getattr(lora, "use_dora", False) for lora in self.unet_loras)
        if self.use_rslora or self.use_dora:
            self.register_buffer(RSLORA_FLAG, torch.tensor(self.use_rslora))
            self.register_buffer(DORA_FLAG, torch.tensor(self.use_dora))
        if use_dora:
            logger.info(self._dora_summary())
        if verbose:
            self._log_selection(selection)

    def _create(self, prefix: str, chosen: Sequence[Target], use_dora: bool) -> list[Any]:
        created: list[Any] = []
        for target in chosen:
            name = targets.module_name(prefix, target.path)
            if name in self._modules:
                raise ValueError(f"two layers of the model are both called {name}; exclude one of them")
            split = {"split_dims": target.split_dims} if target.split_dims else {}
            lora = self.module_class(
                name,
                target.module,
                self.multiplier,
                target.rank,
                target.alpha,
                dropout=self.dropout,
                rank_dropout=self.rank_dropout,
                module_dropout=self.module_dropout,
                use_rslora=self.use_rslora,
                use_dora=use_dora,
                **split,
                **self.module_kwargs,
            )
            self.add_module(name, lora)
            created.append(lora)
        return created

    def _dora_summary(self) -> str:
        reasons = Counter(lora.dora_disabled_reason for lora in self.unet_loras if lora.dora_disabled_reason)
        summary = f"DoRA enabled on {sum(lora.use_dora for lora in self.unet_loras)} modules"
        disabled = ", ".join(f"{reasons[reason]} {reason}" for reason in DORA_OBSTACLES if reasons[reason])
        return f"{summary}, disabled on: {disabled}" if disabled else summary

    def _log_selection(self, selection: Selection) -> None:
        for lora, target in zip(self.unet_loras, selection.targets, strict=True):
            count = sum(parameter.numel() for parameter in lora.parameters())
            logger.info(f"{target.path}: {lora.lora_name}, rank {lora.lora_dim}, {count} parameters")
        for path, reason in selection.skipped.items():
            logger.info(f"{path}: not adapted, because {reason}")
        total = sum(parameter.numel() for parameter in self.parameters())
        logger.info(f"{len(self.unet_loras)} modules adapted, {total} parameters; {len(selection.skipped)} left out")

    def prepare_network(self, args: Any) -> None:
        """Called by trainers before `apply_to`; there is nothing to prepare."""

    def set_multiplier(self, multiplier: float) -> None:
        """The strength of every module; at 0 the model is the base, bit for bit."""
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
            raise RuntimeError("No LoRA modules found: no layer of the model is one that this network module adapts")
        for lora in self.unet_loras:
            lora.apply_to()
        logger.info(f"{len(self.unet_loras)} LoRA modules applied")

    def load_weights(self, file: str | os.PathLike[str]) -> Any:
        """Loads a file; returns torch's missing and unexpected keys.

        Raises ValueError where the file's scale rule, DoRA, modules or shapes are not the network's.
        """
        try:
            fit = loading.fitted(reading.read(*reading.open_weights(os.fspath(file))), self._expected())
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None
        flat = {f"{name}.{key}": tensor for name, tensors in fit.items() for key, tensor in tensors.items()}
        missing = len(self.unet_loras) - len(fit)
        if missing:
            logger.warning(f"{file} has no weights for {missing} of the network's {len(self.unet_loras)} modules")
        return self.load_state_dict(flat, strict=False)

    def is_mergeable(self) -> bool:
        """Whether `merge_to` exists."""
        return True

    def merge_to(
        self,
        text_encoders: Any,
        unet: Any,
        weights_sd: Mapping[str, Tensor],
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        non_blocking: bool = False,
        safe_merge: bool = False,
    ) -> None:
        """Folds `weights_sd` into the base's weights, and disables the modules that are merged.

        The network is one made by `create_*_from_weights` with `for_inference=True`. See `LoRAInfModule.merge_to`
        for dtype, device and what is refused; the same mismatches raise ValueError as in `load_weights`.
        """
        fit = loading.fitted(reading.read(weights_sd), self._expected())
        for lora in self.unet_loras:
            if not hasattr(lora, "merge_to"):
                raise TypeError(
                    "a training network does not merge; create one from the weights with for_inference=True"
                )
            if lora.lora_name in fit:
                lora.merge_to(fit[lora.lora_name], dtype, device, non_blocking, safe_merge)
        if missing := len(self.unet_loras) - len(fit):
            logger.warning(f"the weights have nothing for {missing} of the network's {len(self.unet_loras)} modules")

    def _expected(self) -> loading.Expected:
        return loading.Expected(
            rslora=self.use_rslora,
            settled=self.rslora_settled,
            shapes={key: tensor.shape for key, tensor in self.state_dict().items() if "." in key},
            dora={lora.lora_name for lora in self.unet_loras if getattr(lora, "use_dora", False)},
            alpha_of=lambda rank: neutral_alpha(rank, self.use_rslora),
        )

    def set_loraplus_lr_ratio(self, loraplus_lr_ratio: float | None) -> None:
        """The learning rate of the up factors as a multiple of the others'; None for the same."""
        self.loraplus_lr_ratio = loraplus_lr_ratio

    def prepare_optimizer_params(
        self, unet_lr: float | None = 1e-4, **kwargs: Any
    ) -> tuple[list[dict[str, Any]], list[str]]:
        """(parameter groups, their descriptions), of equal length; makes every parameter trainable."""
        self.requires_grad_(True)
        return optimizer_groups.build_groups(self.unet_loras, "unet", unet_lr, self.loraplus_lr_ratio)

    def prepare_optimizer_params_with_multiple_te_lrs(
        self, text_encoder_lr: Any, unet_lr: float | None, default_lr: float | None
    ) -> tuple[list[dict[str, Any]], list[str]]:
        """The same, as sd-scripts calls it."""
        return self.prepare_optimizer_params(default_lr if unet_lr is None else unet_lr)

    def enable_gradient_checkpointing(self) -> None:
        """Nothing to do: the factors keep only the small hidden activations."""

    def prepare_grad_etc(self, *args: Any) -> None:
        """Makes every parameter trainable; the models that trainers pass are not touched."""
        self.requires_grad_(True)

    def on_epoch_start(self, *args: Any) -> None:
        """Training mode."""
        self.train()

    def on_step_start(self, *args: Any) -> None:
        """Nothing to do."""

    def get_trainable_params(self) -> list[nn.Parameter]:
        """Every parameter."""
        return list(self.parameters())

    def save_weights(
        self, file: str | os.PathLike[str], dtype: torch.dtype | None, metadata: Mapping[str, str] | None
    ) -> None:
        """Writes the state dict; see `saving.write_weights`."""
        saving.write_weights(os.fspath(file), self.state_dict(), dtype, metadata, self.use_rslora)

    def backup_weights(self) -> None:
        """Keeps the base's weights, for `restore_weights`."""
        for lora in self.unet_loras:
            lora.backup_weights()

    def pre_calculation(self) -> None:
        """Folds the modules' own weights into the base."""
        for lora in self.unet_loras:
            lora.pre_calculation()

    def restore_weights(self) -> None:
        """Puts the kept weights back, bit for bit."""
        for lora in self.unet_loras:
            lora.restore_weights()

    def apply_max_norm_regularization(self, max_norm_value: float, device: Any = None) -> tuple[int, float, float]:
        """(modules shrunk, mean norm, largest norm); see `max_norm.limit_norms`."""
        return max_norm.limit_norms(self.unet_loras, max_norm_value)

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        # The flags describe this network and are not to be changed by a file; they may be there or not.
        rslora, _ = (state_dict.pop(prefix + flag, None) for flag in (RSLORA_FLAG, DORA_FLAG))
        if rslora is not None and bool(rslora) != self.use_rslora:
            error_msgs.append(f"RS-LoRA flag mismatch: the network has use_rslora={self.use_rslora}")
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        flags = (prefix + RSLORA_FLAG, prefix + DORA_FLAG)
        missing_keys[:] = [key for key in missing_keys if key not in flags]
