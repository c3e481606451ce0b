"""The files of a merged base, from its plan: the weights of each, and what a folder has beside them."""

from collections.abc import Callable, Mapping

from lora_inspect.files.base_folder import copy_side_files
from lora_inspect.files.input_file import Identity
from lora_inspect.files.pending_output import Borrowing
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.files.safetensors.writer import ROOM, encode_header, in_file_order
from lora_inspect.merging.fold import Folding, Written, write_folded
from lora_inspect.merging.plan import MergePlan
from lora_inspect.merging.retention import Keeping
from lora_inspect.progress import Progress
from lora_inspect.reading.metadata.output_metadata import merged_metadata


class OutputFiles:
    """What a plan has written, each file of the base by itself. `keeping` gathers what is kept of the changes."""

    def __init__(self, plan: MergePlan, keeping: Keeping | None = None) -> None:
        self._plan = plan
        self._folding = Folding(plan.folds, plan.storage, plan.options.dora_rule, plan.options.seed, keeping)

    def write(
        self,
        file: str,
        output: str,
        record: str,
        progress: Progress,
        inputs: Mapping[str, Identity] | None = None,
        force: bool = False,
        accept: Callable[[], None] = lambda: None,
        borrowing: Borrowing | None = None,
    ) -> Written:
        """Writes the tensors of one `file` of the base to `output`, with the `record` of the merge in its metadata.

        The rest is as `write_folded` has it.
        """
        metadata = self._metadata(file, record)
        infos = self._infos(file)
        return write_folded(output, infos, self._folding, metadata, progress, inputs, force, accept, borrowing)

    def header(self, file: str, record: str) -> bytes:
        """The bytes before the tensors of what `write` makes of a `file`."""
        plans = in_file_order(self._folding.output(info) for info in self._infos(file))
        return encode_header(plans, self._metadata(file, record), ROOM)

    @property
    def weight_bytes(self) -> int:
        """The size of all tensors of the output."""
        return sum(self._folding.output(info).nbytes for info in self._plan.written)

    def put_beside(self, folder: str, progress: Progress) -> None:
        """Fills the `folder` of the weights with the index and all else that lies beside them."""
        plan = self._plan
        dropped, rewritten = plan.storage.dropped, plan.storage.side_files
        copy_side_files(
            plan.base, plan.side_files, folder, self.weight_bytes, progress, dropped, rewritten, plan.renamed
        )

    def _infos(self, file: str) -> list[TensorInfo]:
        return [info for info in self._plan.written if info.file == file]

    def _metadata(self, file: str, record: str) -> dict[str, str]:
        described = self._plan.storage.metadata.get(file, self._plan.base.file_metadata[file])
        return merged_metadata(described, record)
