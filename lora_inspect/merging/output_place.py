"""Where a merged base goes: the path of its file or folder, and whether it may be written there."""

import os

from lora_inspect.files.output_names import file_output, folder_output
from lora_inspect.files.outputs import check_output, check_replaceable
from lora_inspect.files.places import is_folder
from lora_inspect.merging.plan import MergePlan


def merge_output(plan: MergePlan, named: str) -> str:
    """The path that `merge` writes for what the user `named`; raises LoraInspectError where that is no output of it."""
    if plan.base.root is None:
        return file_output(named, plan.base.name, plan.inputs)
    what = "a folder" if is_folder(plan.base.path) else "a part of a sharded set"
    return folder_output(named, f"{plan.base.path} is {what}", plan.inputs)


def check_merge_output(plan: MergePlan, output: str, force: bool) -> None:
    """Raises LoraInspectError where `merge` would refuse to write to the path `output`."""
    is_folder = plan.base.root is not None
    check_output(output, plan.inputs, force, folder=is_folder)
    if is_folder:
        weights = [os.path.basename(file) for file in plan.base.files]
        check_replaceable(output, [*weights, *plan.side_files.copied], plan.side_files.folders)
