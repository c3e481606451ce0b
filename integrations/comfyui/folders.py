"""Paths of the files that nodes read and write, from names that anyone who sends a workflow may choose.

A workflow may come from the network. No name leads out of the folders that ComfyUI lists: those of a kind, such as
`loras`, for reading, and the first `loras` folder or the output folder for writing.
"""

import os
from pathlib import Path, PurePosixPath, PureWindowsPath

import folder_paths

from lora_inspect import NotFoundError, RefusedError, WouldOverwriteError

__all__ = ["MODEL_KINDS", "OUTPUT_FOLDERS", "lora_path", "model_path", "output_path", "state_of", "wrong_output_name"]

LORAS = "loras"
OUTPUT_FOLDERS = (LORAS, "output")
# The kinds of files that hold a whole model, by the names that ComfyUI has for their folders.
MODEL_KINDS = ("checkpoints", "diffusion_models")

_ENDING = ".safetensors"
# No system takes a longer name, and writers need room for a name of their own beside it.
_LONGEST_NAME = 200
# Characters that Windows refuses in names. The colon also begins a stream of a file, or ends a drive.
_FORBIDDEN = frozenset('<>:"/\\|?*')
# Names that Windows gives to devices, whatever their ending.
_DEVICES = frozenset(
    ("CON", "PRN", "AUX", "NUL", *(f"{device}{number}" for device in ("COM", "LPT") for number in range(10)))
)
_PLAIN = "give a plain name such as combined"


def lora_path(name: str) -> Path:
    """Return the path of a file of the `loras` folders; `name` is as ComfyUI lists it, `style.safetensors`.

    Raises RefusedError for a name or a link that leads out of these folders, and NotFoundError for a missing file.
    """
    return _listed(LORAS, name)


def model_path(name: str) -> Path:
    """Return the path of a model; `name` has its kind in front, `checkpoints/model.safetensors`.

    Raises RefusedError for an unknown kind and as `lora_path` does, and NotFoundError for a missing file.
    """
    kind, _, rest = name.partition("/")
    if kind not in MODEL_KINDS:
        raise RefusedError(name, "it is in no folder of models", f"choose a file of {' or '.join(MODEL_KINDS)}")
    return _listed(kind, rest)


def output_path(name: str, folder: str, overwrite: bool) -> Path:
    """Return the path of an output: a plain name in the first `loras` folder, or in the output folder.

    `.safetensors` is added where the name is without it. Raises RefusedError for any other name or folder, for a link
    that leads out, and for a missing folder; WouldOverwriteError for an existing file unless `overwrite` is set.
    """
    if wrong := wrong_output_name(name):
        raise RefusedError(name or "output_name", wrong, _PLAIN)
    if folder not in OUTPUT_FOLDERS:
        raise RefusedError(folder, "no node writes to this folder", f"choose {' or '.join(OUTPUT_FOLDERS)}")
    root = _roots(LORAS)[0] if folder == LORAS else Path(folder_paths.get_output_directory())
    if not root.is_dir():
        raise RefusedError(str(root), "there is no such folder", "create it, or choose the other folder")
    path = root / (name if name.lower().endswith(_ENDING) else f"{name}{_ENDING}")
    if not _is_inside(path, [root]):
        raise RefusedError(str(path), f"it is a link out of the {folder} folder", "give another name")
    if os.path.lexists(path) and not overwrite:
        raise WouldOverwriteError(str(path), "it exists", "give another name, or turn on overwrite")
    return path


def wrong_output_name(name: str) -> str:
    """Return the problem of a name for an output; an empty string for a plain file name."""
    if not name or name != name.strip() or name.startswith(".") or name.endswith("."):
        return "a file name is not empty, and neither begins with a dot nor ends with one or with a space"
    if not name.isprintable() or _FORBIDDEN & set(name):
        return "a file name has no separators, colons, wildcards or control characters"
    if name.partition(".")[0].rstrip().upper() in _DEVICES:
        return "it is the name of a device in Windows"
    if len(name.encode("utf-8", "surrogatepass")) > _LONGEST_NAME:
        return f"a file name has at most {_LONGEST_NAME} bytes"
    return ""


def state_of(path: Path) -> str:
    """Return the modification time in nanoseconds and the size in bytes, as text that changes with the file."""
    found = path.stat()
    return f"{found.st_mtime_ns}:{found.st_size}"


def _listed(kind: str, name: str) -> Path:
    if _leads_out(name):
        raise RefusedError(name, "it is no name of a file in ComfyUI's folders", "choose a file of the list")
    roots = _roots(kind)
    path = next((path for root in roots if os.path.isfile(path := root / name)), None)
    if path is None:
        raise NotFoundError(name, f"it is not in ComfyUI's {kind} folders", "choose a file of the list")
    if not _is_inside(path, roots):
        raise RefusedError(
            str(path), f"it is a link out of ComfyUI's {kind} folders", "add its folder to extra_model_paths.yaml"
        )
    return path


def _leads_out(name: str) -> bool:
    """Return True for a name that is no relative path downwards, by the rules of POSIX or of Windows."""
    windows = PureWindowsPath(name)
    parts = name.replace("\\", "/").split("/")
    is_rooted = PurePosixPath(name).is_absolute() or bool(windows.drive or windows.root)
    return is_rooted or "\0" in name or not {"", ".", ".."}.isdisjoint(parts)


def _is_inside(path: Path, roots: list[Path]) -> bool:
    """Return True if the path stays below one of the folders once all links are followed."""
    real = Path(os.path.realpath(path))
    return any(real.is_relative_to(os.path.realpath(root)) for root in roots)


def _roots(kind: str) -> list[Path]:
    return [Path(root) for root in folder_paths.get_folder_paths(kind)]
