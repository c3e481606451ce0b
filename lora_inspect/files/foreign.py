"""What stands under the name of a safetensors file or beside one, told by its first bytes. Standard library only."""

from lora_inspect.errors import LoraInspectError

START_BYTES = 64

PICKLE_ENDINGS = (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle")
# How a file begins that is often found under a .safetensors name, and what it is.
_FOREIGN_STARTS = (
    (b"version https://git-lfs.github.com/spec/", "a Git-LFS pointer, not the file itself", "run `git lfs pull`"),
    (b"PK\x03\x04", "a PyTorch pickle (zip)", "save it as .safetensors with the program that wrote it"),
    (b"GGUF", "a GGUF file", "use the .safetensors version of the model"),
    (b"<!DOCTYPE", "a saved web page", "download the file itself"),
    (b"<html", "a saved web page", "download the file itself"),
)


def refuse_pickle_name(file: str) -> None:
    """Raises LoraInspectError where the name of a file says that it is a pickle."""
    if file.lower().endswith(PICKLE_ENDINGS):
        raise LoraInspectError(
            f"{file}: a pickle can run code when it is opened, so it is never read; "
            "save it as .safetensors with the program that wrote it."
        )


def refuse_foreign(file: str, start: bytes, size: int) -> None:
    """Raises LoraInspectError where the first bytes of a file show that it is something else."""
    for magic, what, mend in _FOREIGN_STARTS:
        if start.startswith(magic):
            raise LoraInspectError(f"{file}: it is {what}; {mend}.")
    if start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05" and start[8:9] != b"{":
        raise LoraInspectError(f"{file}: it is a pickle, which is never read; save it as .safetensors.")
    if size < 8 and file.endswith(".safetensors"):
        raise LoraInspectError(
            f"{file}: it has {size} bytes, fewer than the 8 that begin a safetensors file; fetch it again."
        )
