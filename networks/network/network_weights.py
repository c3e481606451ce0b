"""The exchange of a network's weights: files, state dicts, and folds into the base."""

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lora_inspect.errors import LoraInspectError
from lora_inspect.maths.scaling import STANDARD as STANDARD_SCALE
from lora_inspect.maths.scaling import neutral_alpha
from lora_inspect.reading.model.evidence import DORA_FLAG, RSLORA_FLAG, SCALE_KEY

from ..files import loading, reading, saving, standard_form, state_names
from ..files.file_names import FileNames, NamedTensors
from ..files.reading import StateDictReading
from ..files.state_names import StateNames
from ..modules import dora_layer
from ..modules.adapter_module import AdapterModule
from ..modules.base_forward import FastPaths, copied
from ..modules.masks import RankMask
from ..modules.pissa import PissaModule
from ..network_args import NATIVE, STANDARD
from . import summary
from .targets import LeftOut

logger = logging.getLogger(__name__)

_PEFT = "peft"


class NetworkWeights(nn.Module):
    """The weights of a network with the modules `unet_loras` and `text_encoder_loras`.

    `rslora_settled` says that the user chose the scale rule, so weights without a statement need not confirm it.
    `is_grouped` says that an optimiser has the parameters, so that modules can no longer be added.
    """

    unet_loras: list[Any]
    text_encoder_loras: list[Any]
    left_out: LeftOut
    fast_paths: FastPaths
    multiplier: float
    module_class: Any
    rank_mask: RankMask | None
    use_rslora: bool

    def __init__(self) -> None:
        super().__init__()
        self.rslora_settled = False
        self.is_grouped = False
        self.save_format = NATIVE
        # Modules of text encoders that a trainer does not train, by name.
        self._untrained: set[str] = set()
        # What a file says of the options that the network was made with.
        self.option_metadata: dict[str, str] = {}
        self._file_names: FileNames | None = None
        # A pipeline's names of the models that are adapted, by the prefix of their modules' names.
        self.part_names: dict[str, str] = {}
        self._paths: dict[str, str] = {}

    @property
    def loras(self) -> list[Any]:
        """All modules, with those of text encoders first."""
        return [*self.text_encoder_loras, *self.unet_loras]

    def __deepcopy__(self, memo: dict[int, Any]) -> "NetworkWeights":
        adapters = [lora for lora in self.loras if isinstance(lora, AdapterModule)]
        network: NetworkWeights = copied(
            self, adapters, memo, (*self.left_out.layers, *self.fast_paths.blocks, self._file_names)
        )
        return network

    def load_weights(self, file: str | os.PathLike[str]) -> Any:
        """Load a file, and return torch's missing and unexpected keys.

        Layers of the file that the architecture leaves out by default become modules of the network, until an optimiser
        has its parameters. Raises ValueError if the file's scale rule, DoRA, modules or shapes differ from the
        network's, and for a file that holds no tensors by name.
        """
        opened = reading.open_weights(os.fspath(file))
        try:
            return self._load(file, *self._without_untrained(*opened))
        except LoraInspectError:
            raise
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None

    def state_dict_as(self, names: str) -> dict[str, Tensor]:
        """Return copies of the tensors in the names of another program: see `state_names.SPELLINGS`.

        alpha/rank is the scale, slices are one pair of factors, and a magnitude is spelled as there. PEFT's alphas are
        in `peft_config`; diffusers and ai-toolkit have none, and the scale is in up. Raises ValueError for other names,
        for tensors that the program has no name for, and for modules without a magnitude that PEFT would give one.
        """
        named = self._names(names).to_program(self._standard_tensors())
        if problem := self._magnitude_problem(names):
            if names == _PEFT:
                raise ValueError(problem)
            logger.warning(problem)
        return named

    def load_state_dict_as(self, names: str, tensors: Mapping[str, Tensor]) -> Any:
        """Load tensors of `state_dict_as`; errors as those of `load_weights`, and ValueError for foreign keys."""
        own = self._standard_tensors()
        found = self._names(names).from_program(tensors, own)
        metadata = standard_form.standard_metadata({}, self._file_tensors(), own, self.use_rslora)
        metadata = saving.at_twice_the_rank(metadata, self.use_rslora) if self._is_pissa else metadata
        return self._load(f"the state dict of {names}", found, {**metadata, SCALE_KEY: STANDARD_SCALE})

    def peft_config(self) -> dict[str, Any]:
        """Return the `adapter_config.json` for `state_dict_as("peft")`, with the alphas.

        Raises ValueError if PEFT has no names for the network, and if it would give magnitudes to modules without.
        """
        tensors = self._standard_tensors()
        self._names(_PEFT).to_program(tensors)
        if problem := self._magnitude_problem(_PEFT):
            raise ValueError(problem)
        return state_names.peft_config(tensors, self._paths)

    def _magnitude_problem(self, program: str) -> str:
        """Return the problem of modules without a magnitude beside modules with one, or "" if a program has none.

        PEFT's `use_dora` is for all modules. It sets the missing magnitudes to the norms of the base, and divides by
        the norms of base and change.
        """
        plain = [lora for lora in self.loras if not getattr(lora, "use_dora", False)]
        if program not in (_PEFT, "diffusers") or not plain or len(plain) == len(self.loras):
            return ""
        return (
            f"the state dict of {program}: PEFT uses DoRA on all {len(self.loras)} modules, but the network lacks it "
            f"on {reading.count(plain, 'modules')} ({reading.some_of([lora.lora_name for lora in plain])}); "
            f"{summary.way_to_dora(plain)}"
        )

    def _names(self, program: str) -> StateNames:
        return StateNames(
            program, {lora.lora_name: self._paths[lora.lora_name] for lora in self.loras}, self.part_names
        )

    def _standard_tensors(self) -> dict[str, Tensor]:
        axes = {lora.lora_name: getattr(lora, "dora_scale_axes", 0) for lora in self.loras}
        tensors = standard_form.to_standard(self._file_tensors(), self.use_rslora)
        return standard_form.with_dora_scale(tensors, axes)

    def _load(self, file: Any, weights: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Any:
        more = {} if self.is_grouped else self.left_out.modules(self._foreign_names(weights))
        loras = [*self.loras, *more.values()]
        fit = loading.fitted(self._read(weights, metadata, loras), self._expected(loras))
        if saving.TLORA_KEY in metadata and self.rank_mask is None:
            logger.warning(f"{file} was trained with use_tlora=True; without it all ranks act at every timestep")
        if more:
            options = " and ".join(self.left_out.ways_in(more))
            logger.info(
                f"the network also adapts {reading.count(more, 'layers')} of {file} that it leaves out by "
                f"default, as with {options}: {reading.some_of(list(more))}"
            )
            self.take(more)
        flat: dict[str, Tensor] = {}
        for lora in self.loras:
            if lora.lora_name in fit:
                tensors = lora.from_file(fit[lora.lora_name])
                flat |= {f"{lora.lora_name}.{key}": tensor for key, tensor in tensors.items()}
        missing = len(self.loras) - len(fit)
        if missing:
            logger.warning(f"{file} has no weights for {missing} of the network's {len(self.loras)} modules")
        return self.load_state_dict(flat, strict=False)

    def _without_untrained(
        self, weights: Mapping[str, Tensor], metadata: Mapping[str, str]
    ) -> tuple[Mapping[str, Tensor], Mapping[str, str]]:
        """Return the weights without those of text encoders that are not trained.

        A line in the log counts them.
        """
        names = {key.partition(".")[0] for key in weights} & self._untrained
        if not names:
            return weights, metadata
        logger.info(
            f"{reading.count(names, 'modules')} of text encoders {reading.is_or_are(names)} left out, as these are not "
            "trained"
        )
        return {key: tensor for key, tensor in weights.items() if key.partition(".")[0] not in names}, metadata

    def is_mergeable(self) -> bool:
        """Return True: `merge_to` exists."""
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
        """Fold `weights_sd` into the base's weights, and disable the merged modules.

        The network has to come from `create_*_from_weights` with `for_inference=True`. See `LoRAInfModule.merge_to` for
        dtype, device and errors; the same mismatches raise ValueError as in `load_weights`.
        """
        fit = loading.fitted(self._read(weights_sd, {}, self.loras), self._expected(self.loras))
        for lora in self._mergeable_loras():
            if lora.lora_name in fit:
                lora.merge_to(fit[lora.lora_name], dtype, device, non_blocking, safe_merge)
        if missing := len(self.loras) - len(fit):
            logger.warning(f"the weights have nothing for {missing} of the network's {len(self.loras)} modules")

    def save_weights(
        self,
        file: str | os.PathLike[str],
        dtype: torch.dtype | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Write a file for `load_weights`; see `saving.write_weights`.

        Raises TypeError for `metadata` that are no mapping of texts.
        """
        saving.check_metadata(os.fspath(file), metadata)
        complete: dict[str, Any] = {**self.option_metadata, **(metadata or {})}
        if self._is_pissa:
            complete = saving.at_twice_the_rank(complete, self.use_rslora)
        tensors, rslora = self._file_tensors(), self.use_rslora
        if self.save_format == STANDARD:
            native, tensors = tensors, standard_form.to_standard(tensors, rslora)
            complete = standard_form.standard_metadata(complete, native, tensors, rslora)
            rslora = False
        lycoris = {lora.lora_name: lora.dora_scale_axes for lora in self.loras if getattr(lora, "dora_scale_axes", 0)}
        if lycoris:
            tensors = standard_form.with_dora_scale(tensors, lycoris)
        named = NamedTensors(tensors, complete)
        if self._file_names is not None:
            named = self._file_names.to_file(tensors, complete, rslora)
        tensors, complete = named.tensors, named.metadata
        if self.save_format == STANDARD:
            tensors = standard_form.with_dora_scale(tensors, {})
        complete |= standard_form.magnitude_record(tensors)
        saving.write_weights(os.fspath(file), tensors, dtype, complete, rslora and not named.folded)

    def backup_weights(self) -> None:
        """Keep the base's weights, for `restore_weights`."""
        for lora in self._mergeable_loras():
            lora.backup_weights()

    def pre_calculation(self) -> None:
        """Fold the modules' own weights into the base."""
        for lora in self._mergeable_loras():
            lora.pre_calculation()

    def restore_weights(self) -> None:
        """Restore the kept weights, bit for bit."""
        for lora in self._mergeable_loras():
            lora.restore_weights()

    def _mergeable_loras(self) -> list[Any]:
        if not all(hasattr(lora, "merge_to") for lora in self.loras):
            raise TypeError("a training network does not merge; create one from the weights with for_inference=True")
        return self.loras

    def name_files(self, names: FileNames) -> None:
        """Use `names` in files and in weights to merge; inside, modules keep theirs.

        Raises ValueError if a file would have no name for a tensor.
        """
        tensors = self._file_tensors()
        names.check(standard_form.to_standard(tensors, self.use_rslora) if self.save_format == STANDARD else tensors)
        self._file_names = names

    def log_readers(self) -> None:
        """Log the programs that will read another change from the files than the network's; see `summary`."""
        folded = self._file_names is not None and self._file_names.folds_the_scale(self._file_tensors())
        summary.log_readers(self.loras, self.save_format, folded)

    def _read(
        self, weights: Mapping[str, Tensor], metadata: Mapping[str, str], loras: Sequence[Any]
    ) -> StateDictReading:
        """Return the reading of weights with the names and the slices of the modules `loras`."""
        if self._file_names is not None:
            named = self._file_names.from_file(weights, metadata, self._file_tensors(loras), self.use_rslora)
            weights, metadata = named.tensors, named.metadata
        weights, metadata = reading.with_whole_alphas(weights, metadata)
        sizes = {lora.lora_name: getattr(lora, "split_dims", None) for lora in loras}
        found = reading.read(weights, metadata, getattr(self.module_class, "reader", None))
        return standard_form.in_slices(found, sizes.get)

    def _foreign_names(self, weights: Mapping[str, Tensor]) -> set[str]:
        """Return a file's modules that the network lacks, by the names that it would give them."""
        names = self._file_names
        places = {key: names.place(key) if names else None for key in weights}
        found = {place.name if place else key.partition(".")[0] for key, place in places.items()}
        return found - {lora.lora_name for lora in self.loras}

    def take(self, modules: Mapping[str, Any], of_encoders: bool = False) -> None:
        """Add `modules` to the network, and put them into their layers if the others are there."""
        into = self.text_encoder_loras if of_encoders else self.unet_loras
        is_applied = any(getattr(lora, "org_forward", None) is not None for lora in self.loras)
        for name, lora in modules.items():
            lora.multiplier = self.multiplier
            self.add_module(name, lora)
            into.append(lora)
            if is_applied:
                lora.apply_to()
        dora_layer.share_notice(lora.dora_layer.watch for lora in self.loras if getattr(lora, "use_dora", False))

    def _expected(self, loras: Sequence[Any]) -> loading.AcceptedTensors:
        return loading.AcceptedTensors(
            rslora=self.use_rslora,
            settled=self.rslora_settled,
            shapes={key: tensor.shape for key, tensor in self._file_tensors(loras).items() if "." in key},
            dora={lora.lora_name for lora in loras if getattr(lora, "use_dora", False)},
            alpha_of=lambda rank: neutral_alpha(rank, self.use_rslora),
            pissa=self._is_pissa,
            ways_in=self.left_out.ways_in,
            alphas={
                key.partition(".")[0]: float(tensor)
                for key, tensor in self._file_tensors(loras).items()
                if key.endswith(".alpha")
            },
        )

    @property
    def _is_pissa(self) -> bool:
        return self.module_class is PissaModule

    def _file_tensors(self, loras: Sequence[Any] | None = None) -> dict[str, Tensor]:
        """Return the state dict of `loras` (None: all modules), and the flags, in the form of a file."""
        tensors = {key: tensor.bool() for key, tensor in self.state_dict().items() if "." not in key}
        for lora in self.loras if loras is None else loras:
            tensors |= {f"{lora.lora_name}.{key}": tensor for key, tensor in lora.file_tensors().items()}
        return tensors

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        # Averages of trainers are taken with lerp_ over all tensors, which has no bool.
        for key in (prefix + RSLORA_FLAG, prefix + DORA_FLAG):
            if key in destination:
                destination[key] = destination[key].float()

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
        standard_form.rename_dora_scales(state_dict, prefix)
        error_msgs.extend(loading.magnitude_errors(state_dict, prefix, self.loras))
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        flags = (prefix + RSLORA_FLAG, prefix + DORA_FLAG)
        missing_keys[:] = [key for key in missing_keys if key not in flags]
