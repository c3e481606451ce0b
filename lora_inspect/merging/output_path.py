"""The path of a merged base, a file or a folder, and the check that it may be written there."""

import os

from lora_inspect.errors import RefusedError
from lora_inspect.files.locations import is_folder
from lora_inspect.files.outputs import check_output, check_replaceable, file_output, folder_output
from lora_inspect.files.temp_files import without_slash
from lora_inspect.merging.plan import MergePlan
from lora_inspect.sentences import counted
from lora_inspect.stores.address import is_remote


def merge_output(plan: MergePlan, named: str) -> str:
    """Return the path that `merge` writes for the user's `named`; LoraInspectError if it cannot be an output."""
    if plan.base.root is None:
        return file_output(named, plan.base.name, plan.inputs)
    what = "a folder" if is_folder(plan.base.path) else "a part of a sharded set"
    return folder_output(named, f"{plan.base.path} is {what}", plan.inputs)


def merge_bytes(plan: MergePlan, output: str) -> int:
    """Return the bytes that `merge` reports: those of the plan, twice if the output is sent to a store."""
    return plan.bytes * 2 if is_remote(output) else plan.bytes


def check_merge_output(plan: MergePlan, output: str, force: bool) -> None:
    """Raise LoraInspectError if `merge` would refuse to write to the path `output`."""
    is_folder = plan.base.root is not None
    check_output(output, plan.inputs, force, folder=is_folder)
    if is_folder:
        weights = [os.path.basename(file) for file in plan.base.files]
        check_replaceable(output, [*weights, *plan.side_files.copied], plan.side_files.folders)


def shared_output(plan: MergePlan, named: str, force: bool, jobs: int = 1) -> str:
    """Return the folder that several `jobs` together write for the user's `named`.

    Raises LoraInspectError if so many jobs cannot share the base, and if `merge` would not write there.
    """
    base = plan.base
    if is_remote(named):
        raise RefusedError(
            named,
            "jobs find each other by files next to the output, so it must be in a folder that all of them share",
            "name such a folder, and copy the finished output to the store",
        )
    if base.root is None:
        raise RefusedError(
            base.path,
            "it is one file, but several processes can only share a sharded base",
            "merge it with one process",
        )
    if jobs > len(base.files):
        raise RefusedError(
            base.path,
            f"it has {counted(len(base.files), 'shard')}, so no more jobs than that can share it",
            f"give --shard I/{len(base.files)}",
        )
    output = without_slash(merge_output(plan, named))
    if os.path.realpath(output).startswith(os.path.join(os.path.realpath(base.root), "")):
        raise RefusedError(
            output,
            "it is in the folder of the base, which each job reads as a whole",
            "choose a folder outside",
        )
    check_merge_output(plan, output, force)
    return output
