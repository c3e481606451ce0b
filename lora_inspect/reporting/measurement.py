"""The measured changes of an adapter: sizes and spectra by part and block, and modules of unusual size."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_inspect.algebra.measures.sizes_by_part import SizesByPart, by_part, titles_of
from lora_inspect.algebra.measures.spectra import SpectrumResult
from lora_inspect.errors import RefusedError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.input_file import check_unchanged
from lora_inspect.matching.orientation import UNANSWERED, Answers
from lora_inspect.progress import Progress, silent
from lora_inspect.reading.file_info import ADAPTER, FileInfo

if TYPE_CHECKING:
    from lora_inspect.algebra.measures.change_sizes import ChangeSize, MeasuredChanges
    from lora_inspect.algebra.measures.unusual_sizes import DeadModule, SmallScale, Spike, UnusualModule


@dataclass(frozen=True, slots=True, repr=False)
class NormsResult(SizesByPart):
    """The sizes of an adapter's changes, and the modules of unusual size.

    `notes` are sentences on settings that were not needed.
    """

    spikes: "list[Spike]"
    dead: "list[DeadModule]"
    small_scales: "list[SmallScale]"
    unusual: "UnusualModule | None"
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the field `norms` of the record that `info --norms --json` prints."""
        by_part = SizesByPart.to_dict(self)
        left_out = by_part.pop("left_out")
        return {
            **by_part,
            "layers": [
                {**_record(one), "shape": list(one.shape), "relative_norm": one.relative_norm} for one in self.sizes
            ],
            "spikes": [_record(one) for one in self.spikes],
            "dead": [_record(one) for one in self.dead],
            "small_scales": [
                {"modules": list(one.keys), "rank": one.rank, "alpha": one.alpha, "scale": one.scale,
                 "ratio": one.ratio}
                for one in self.small_scales
            ],
            "unusual": self.unusual and {**_record(self.unusual), "ratio": self.unusual.ratio},
            "left_out": left_out,
        }  # fmt: skip


def _record(one: "ChangeSize | Spike | DeadModule | UnusualModule") -> dict[str, Any]:
    """Return the fields of a record, with the key of its module under the name that `module_list` has for it."""
    fields = one._asdict()
    return {"module": fields.pop("key"), **fields}


class Measurement(NamedTuple):
    """The measured changes of a file that was read, with the base that they were compared with."""

    info: FileInfo
    found: "MeasuredChanges"
    base: str | None
    notes: tuple[str, ...]

    @property
    def norms(self) -> NormsResult:
        """The sizes of the changes."""
        from lora_inspect.algebra.measures import unusual_sizes

        sizes = self.found.sizes
        return NormsResult(
            **by_part(self.found, self.info.adapter, self.info.candidates, self.base),
            spikes=unusual_sizes.spikes(sizes),
            dead=unusual_sizes.dead(sizes),
            small_scales=unusual_sizes.small_scales(sizes),
            unusual=unusual_sizes.unusual(sizes),
            notes=self.notes,
        )

    @property
    def spectrum(self) -> SpectrumResult:
        """The spectra of the changes."""
        titles = titles_of(self.info.adapter, self.info.candidates)
        return SpectrumResult.of(self.found, titles, self.base, self.notes)


def measure(
    info: FileInfo,
    base: str | None = None,
    transposed: Answers = UNANSWERED,
    progress: Progress = silent,
    with_spectra: bool = False,
) -> Measurement:
    """Measure the changes of an adapter that was read; `progress` receives the bytes of its factors.

    With the model at `base`, norms are compared with those of its weights; `transposed` gives the orientation of its
    square weights if nothing else shows it. Spectra need `with_spectra`. Raises LoraInspectError for a file that is no
    adapter or has an open meaning, and if the adapter does not match the base.
    """
    from lora_inspect.algebra.measures import change_sizes

    adapter, path = info.adapter, info.checkpoint.path
    if info.kind != ADAPTER:
        raise RefusedError(path, "it is no adapter, so it has no change to measure", "name an adapter")
    adapter.refuse()
    weights = None if base is None else change_sizes.changes_of_base(adapter, base, transposed)
    found = change_sizes.measured_changes(adapter, weights, progress, with_spectra=with_spectra)
    check_unchanged(info.checkpoint.inputs | (weights.inputs if weights else {}))
    return Measurement(info, found, base, tuple(weights.notes) if weights else ())
