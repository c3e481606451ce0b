"""The modules of an opened adapter, and what each does to its layer."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

from lora_inspect.api.arguments import in_a_sentence
from lora_inspect.maths.torch_threads import load_torch
from lora_inspect.ops.info import module_record
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.model.contribution import Contribution, Module
from lora_inspect.reading.scale.scale_records import FoldedScales
from lora_inspect.sentences import shortened

if TYPE_CHECKING:
    import torch

_SHOWN = 3


class ModuleChange:
    """One change that a module makes to its layer: nearly all modules make one.

    A second one is there where a file has, say, LoRA and a difference of the bias for one layer, or the slices of a
    fused one.
    """

    def __init__(self, contribution: Contribution, record: Mapping[str, Any]) -> None:
        self._contribution = contribution
        self._record = record

    @property
    def algorithm(self) -> str:
        """Its name as docs/algorithms.md has it: "lora", "loha", ..."""
        return self._contribution.algorithm.name

    @property
    def parameter(self) -> str:
        """What of the layer it changes: "weight" or "bias"."""
        return self._contribution.algorithm.parameter

    @property
    def rank(self) -> int | None:
        """The rank by which alpha is divided; None for an algorithm without one."""
        return self._contribution.rank

    @property
    def alpha(self) -> float | None:
        """The alpha that is stored or stated; None where none is."""
        return self._contribution.alpha

    @property
    def scale(self) -> float | None:
        """alpha/rank, alpha/sqrt(rank), or what else the file means; None where that is unknown.

        Where it is in the factors already, as `why` then says, it is what was multiplied into them.
        """
        scale: float | None = self._record["scale"]
        return scale

    @property
    def why(self) -> str:
        """The reason for the scale, or for its absence."""
        why: str = self._record["why"]
        return why

    @property
    def shape(self) -> tuple[int | None, ...] | None:
        """(out, in, *kernel) of what it changes, None for what the factors do not tell; of its rows where it has some.

        None for an algorithm that is recognised and not computed.
        """
        shape = self._record["shape"]
        return None if shape is None else tuple(shape)

    @property
    def rows(self) -> tuple[int, int] | None:
        """The rows of the layer's weight that it changes; None for all."""
        return self._contribution.rows

    @property
    def dora(self) -> str | None:
        """The axis of its DoRA magnitude, "output" or "input"; None without one."""
        axis: str | None = self._record["dora"]
        return axis

    def to_dict(self) -> dict[str, Any]:
        """The item of `module_list` that `info --json --modules` prints."""
        return dict(self._record)

    def __repr__(self) -> str:
        scale = "unknown" if self.scale is None else f"{self.scale:.6g}"
        return f"<ModuleChange {self.algorithm} of the {self.parameter}, rank {self.rank}, scale {scale}>"


class OpenedModule:
    """One layer that an adapter changes.

    `changes` are what it does there. The properties `algorithm` to `dora` are those of the first change, which is the
    only one of nearly all modules.
    """

    def __init__(self, adapter: Adapter, module: Module, folded: FoldedScales) -> None:
        self._adapter = adapter
        self._module = module
        self.changes = tuple(ModuleChange(one, module_record(module, one, folded)) for one in module.contributions)

    @property
    def key(self) -> str:
        """The module's name as its keys begin."""
        return self._module.name.key

    @property
    def path(self) -> str | None:
        """The dotted path of the layer, without the component; None where underscores leave it open."""
        return self._module.path

    @property
    def component(self) -> str:
        """Which network of the model it is of: "model", "text_encoder", ..."""
        return self._module.name.component

    @property
    def algorithm(self) -> str:
        """See `ModuleChange.algorithm`."""
        return self.changes[0].algorithm

    @property
    def rank(self) -> int | None:
        """See `ModuleChange.rank`."""
        return self.changes[0].rank

    @property
    def alpha(self) -> float | None:
        """See `ModuleChange.alpha`."""
        return self.changes[0].alpha

    @property
    def scale(self) -> float | None:
        """See `ModuleChange.scale`."""
        return self.changes[0].scale

    @property
    def why(self) -> str:
        """See `ModuleChange.why`."""
        return self.changes[0].why

    @property
    def shape(self) -> tuple[int | None, ...] | None:
        """See `ModuleChange.shape`."""
        return self.changes[0].shape

    @property
    def dora(self) -> str | None:
        """See `ModuleChange.dora`."""
        return self.changes[0].dora

    def delta(
        self,
        base_weight: "torch.Tensor | None" = None,
        *,
        parameter: str | None = None,
        dtype: "torch.dtype | None" = None,
    ) -> "torch.Tensor":
        """What `merge` adds to the layer's weight at multiplier 1, scale and all, in the shape of that weight.

        `base_weight` is the weight itself, as the base stores it: DoRA, OFT and others whose change depends on it need
        it, the rest takes its shape. A square one is taken for (out, in) unless the config says otherwise: give a
        projection that open_clip stores as a parameter as its transpose. Without a weight the shape is what the
        factors tell, in which a LoHa or LoKr of a convolution may have one dimension for inputs and kernel.
        `parameter` is "weight" or "bias", by default what the first change is of. The result is on the device of
        `base_weight`, else on the CPU, and float32 if no `dtype` is given.

        Raises LoraInspectError where the file's meaning is open or damaged, where the weight is needed or is another
        one, and for experts; ValueError for a parameter that the module does not change; TypeError for a weight that
        is no tensor of numbers.
        """
        self._adapter.refuse()
        own = self._changes_of(parameter or self.changes[0].parameter)
        load_torch()
        import torch

        from lora_inspect.merging.single_weight import lone_change

        if base_weight is not None and not _has_numbers(base_weight):
            raise TypeError("base_weight is the weight of the layer, a dense tensor of floating-point numbers")
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise TypeError(f"dtype is a torch.dtype of floating-point numbers, not {dtype!r}")
        with in_a_sentence():
            change = lone_change(self._adapter, own, base_weight)
        return change.to("cpu" if base_weight is None else base_weight.device, dtype or torch.float32)

    def _changes_of(self, parameter: str) -> list[Contribution]:
        changes = self._module.changes
        own = [one for one in changes if one.algorithm.parameter == parameter]
        if not own:
            known = sorted({one.algorithm.parameter for one in changes})
            raise ValueError(f"{self.key} changes no {parameter}; it changes its {' and '.join(known)}")
        return own

    def __repr__(self) -> str:
        more = f" and {len(self.changes) - 1} more" if len(self.changes) > 1 else ""
        scale = "unknown" if self.scale is None else f"{self.scale:.6g}"
        name = shortened(self.path or self.key)
        return f"<OpenedModule {name!r}: {self.algorithm}{more}, rank {self.rank}, scale {scale}>"


def _has_numbers(weight: object) -> bool:
    """Whether it is a tensor that is more than a shape, and has all its numbers in it."""
    import torch

    if not isinstance(weight, torch.Tensor) or weight.is_meta or weight.layout != torch.strided:
        return False
    return weight.is_floating_point()


class Modules(Sequence[OpenedModule]):
    """The modules in the order of the file: `modules[0]`, and by path or name in the file: `modules["blocks.0.q"]`."""

    def __init__(self, adapter: Adapter) -> None:
        folded = FoldedScales(adapter.checkpoint.metadata)
        self._modules = tuple(OpenedModule(adapter, module, folded) for module in adapter.modules.values())
        self._named: dict[str, list[OpenedModule]] = {}
        for module in self._modules:
            for name in {module.key, module.path or module.key}:
                self._named.setdefault(name, []).append(module)

    @overload
    def __getitem__(self, which: int | str) -> OpenedModule: ...
    @overload
    def __getitem__(self, which: slice) -> Sequence[OpenedModule]: ...
    def __getitem__(self, which: int | str | slice) -> OpenedModule | Sequence[OpenedModule]:
        """The module at a number, or with a path or a key: KeyError where none has it, or several components have."""
        if not isinstance(which, str):
            return self._modules[which]
        found = self._named.get(which, [])
        if len(found) != 1:
            keys = ", ".join(module.key for module in found[:_SHOWN])
            raise KeyError(f"{which} is the path of several modules; say which: {keys}" if found else which)
        return found[0]

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[OpenedModule]:
        return iter(self._modules)

    def __contains__(self, which: object) -> bool:
        """Whether a path, a key or a module is one of them."""
        return which in self._named if isinstance(which, str) else which in self._modules

    def __repr__(self) -> str:
        return f"<Modules: {len(self)}>"
