"""Files of another type under the name of weights, recognised by their first bytes. Standard library only."""

import codecs
import os
import re

from lora_inspect.errors import DamagedError, LoraInspectError, RefusedError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.input_file import InputFile
from lora_inspect.files.locations import is_of_server, join, names_in
from lora_inspect.stores.address import is_remote

# Of GGUF: how a file begins, and how the keys begin that only programs of the format understand.
GGUF_MAGIC, GGUF_KEYS = b"GGUF", ("general.", "adapter.")
# Enough for the name of the first file in a zip archive and for the mark of a tar archive.
START_BYTES = 512

PICKLE_ENDINGS = (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle")
# What trainers keep beside their weights to go on from there.
TRAINING_STATES = ("optimizer", "scheduler", "scaler", "sampler", "random_states", "rng_state", "training_args")

_DOWNLOAD = "download the file itself"
_UNPACK = "unpack it and name the .safetensors file in it"
_OTHER_VERSION = "use the .safetensors version of the model"
_FIRST_NAME = rb"PK\x03\x04.{26}[^\x00]{0,255}?"  # up to a part of the name of the first file in a zip archive
_TEXT = rb"(?i)\s*"
_BYTE_ORDER_MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}


class Format(NamedTuple):
    """A regular expression for the first bytes of a file, a description of such a file, and the fix."""

    start: bytes
    what: str
    way_out: str


# Of the last two of these the first protocols have no mark: a container and where it is kept, or a class.
_PICKLES = (
    rb"\x80[\x02-\x05]",
    _FIRST_NAME + rb"/data\.pkl",
    rb"\([dlt]p\d+\n|[})\]]q\x00",
    rb"c[\w.]+\n\w+\n(?:p\d+\n|q\x00|[()])",
)
# The first that fits counts.
_FORMATS = (
    Format(rb"version https://git-lfs\.", "a Git-LFS pointer, not the file itself", "run `git lfs pull`"),
    Format(rb"GGUF", "a GGUF file", _OTHER_VERSION),
    Format(rb"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras and TensorFlow write it", _OTHER_VERSION),
    Format(rb"\x08[\x03-\x1f][\x12\x1a\x22\x28\x32\x3a\x42]", "an ONNX file", _OTHER_VERSION),
    Format(rb".{4}TFL3", "a TensorFlow Lite file", _OTHER_VERSION),
    Format(rb"\x93NUMPY", "an array of numpy (.npy)", _OTHER_VERSION),
    Format(_FIRST_NAME + rb"\.npy", "arrays of numpy (.npz)", _OTHER_VERSION),
    Format(_FIRST_NAME + rb"/(?:code|data|version)\b", "a TorchScript program", _OTHER_VERSION),
    Format(rb"PK(?:\x03\x04|\x05\x06)", "a zip archive", _UNPACK),
    Format(rb"\x1f\x8b", "a gzip archive", _UNPACK),
    Format(rb"BZh[1-9]", "a bzip2 archive", _UNPACK),
    Format(rb"\xfd7zXZ\x00", "an xz archive", _UNPACK),
    Format(rb"\x28\xb5\x2f\xfd", "a Zstandard archive", _UNPACK),
    Format(rb"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    Format(rb"Rar!\x1a\x07", "a RAR archive", _UNPACK),
    Format(rb".{257}ustar", "a tar archive", _UNPACK),
    Format(rb"\x89PNG|\xff\xd8\xff|GIF8|RIFF.{4}WEBP", "a picture", "name the weights that belong to it"),
    Format(rb".{4}ftyp|\x1aE\xdf\xa3", "a video", "name the weights that belong to it"),
    Format(_TEXT + rb"<(?:!doctype|!--|html|head|body)", "a saved web page", _DOWNLOAD),
    Format(_TEXT + rb"<(?:\?xml|error)", "an XML file, as servers send to refuse a request", _DOWNLOAD),
)  # fmt: skip
_JSON = _TEXT + rb"[\[{]\s*[\[\]{}\"\d]"

# What the weights were stored as does not matter to it: views of one tensor, and transposed ones, become their own.
_CONVERSION = (
    "import sys,torch,safetensors.torch as s;d=torch.load(sys.argv[1],'cpu',weights_only=True);"
    "s.save_file({k:v.contiguous().clone() for k,v in d.get('state_dict',d).items()},sys.argv[2])"
)
# Words for the names of a pickle and of the file that is made of it.
_ANY = "FILE NEW.safetensors"


def is_safetensors(start: bytes) -> bool:
    """Return True if these first bytes begin a safetensors file: a length below 4 GiB, then a JSON object.

    No other format begins so: text formats have no zeros there, and the magic bytes of the others differ.
    """
    return start[4:9] == b"\x00\x00\x00\x00{"


def is_gguf(file: str) -> bool:
    """Return True if a file begins with the magic bytes of GGUF, whatever its name."""
    with InputFile(file) as source:
        return source.identity.bytes >= len(GGUF_MAGIC) and source.read(0, len(GGUF_MAGIC)) == GGUF_MAGIC


def is_weights(path: str) -> bool:
    """Return True for a safetensors file: by its name, or by its first bytes if it has a pickle's name."""
    if path.endswith(".safetensors"):
        return True
    if not path.lower().endswith(PICKLE_ENDINGS):
        return False
    try:
        with InputFile(path) as source:
            return is_safetensors(bytes(source.read(0, min(source.identity.bytes, START_BYTES))))
    except LoraInspectError:
        return False


def likely_weights(pickles: list[str]) -> str:
    """Return the pickle in a folder that most likely holds the weights, by its name."""
    return min(pickles, key=lambda name: (name.startswith(TRAINING_STATES), name))


def refuse_foreign(file: str, start: bytes, size: int) -> None:
    """Raise LoraInspectError if the first bytes show that a file is not a safetensors file."""
    if is_safetensors(start):
        return
    start = _unmarked(start)
    refuse_format(file, start)
    is_json = re.match(_JSON, start) is not None
    if is_json and file.lower().endswith(".json"):
        raise RefusedError(file, "it is a JSON file, not weights", _weights_beside(file))
    if size < 8:
        raise DamagedError(
            file, f"it has {size} bytes, fewer than the 8 that begin a safetensors file", "fetch it again"
        )
    if is_json:
        raise DamagedError(file, "it is JSON, as servers send to refuse a request, not weights", _DOWNLOAD)
    if _is_text(start):
        raise DamagedError(file, "it is text, not weights", _DOWNLOAD)


def refuse_format(file: str, start: bytes) -> None:
    """Raise LoraInspectError for a file with the magic bytes of a format other than safetensors and text."""
    if any(re.match(pickle, start, re.DOTALL) for pickle in _PICKLES):
        raise RefusedError(
            file, "it is a pickle, which can run code, so lora-inspect never reads one", _conversion(file)
        )
    for form in _FORMATS:
        if re.match(form.start, start, re.DOTALL):
            raise RefusedError(file, f"it is {form.what}", form.way_out)


def _conversion(pickle: str) -> str:
    """Return the fix that gets the weights out of a pickle without running it."""
    import shlex

    stem, ending = os.path.splitext(pickle)
    converted = stem + (".converted" if ending == ".safetensors" else "") + ".safetensors"
    if is_remote(pickle):
        return _command(_ANY)
    if os.path.exists(converted):
        return f"name {converted}, which is next to it"
    # A name that a shell would take for more than a name is not put into a command.
    return _command(f"{pickle} {converted}" if shlex.quote(pickle) == pickle else _ANY)


def _command(names: str) -> str:
    return (
        "save it as .safetensors with torch 2.10 or newer, which does not run its code: `python -c "
        f'"{_CONVERSION}" {names}`'
    )


def of_any_pickle(way_out: str, pickle: str) -> str:
    """Return the way out of a pickle as that of any: with words in the place of its name and that of its copy."""
    start, quote, behind = way_out.partition(f'{_CONVERSION}" ')
    return f"{start}{quote}{_ANY}`" if behind.startswith(pickle) else way_out


def _weights_beside(file: str) -> str:
    """Return the fix for a JSON file: the weights to name instead."""
    folder = os.path.dirname(file)
    weights = [] if is_of_server(file) else sorted(name for name in names_in(folder) if name.endswith(".safetensors"))
    if not weights:
        return "fetch the weights that belong to it and name them"
    if len(weights) == 1:
        return f"name the weights next to it, {join(folder, weights[0])}, or their folder, {folder or os.curdir}"
    return f"name the weights that belong to it, such as {join(folder, weights[0])}"


def _unmarked(start: bytes) -> bytes:
    """Return a text in UTF-8 without its byte order mark; shells of Windows redirect text with one."""
    for mark, encoding in _BYTE_ORDER_MARKS.items():
        if start.startswith(mark):
            return start[len(mark) :].decode(encoding, "ignore").encode()
    return start


def _is_text(start: bytes) -> bool:
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(start)  # which bears that the end is cut
    except UnicodeDecodeError:
        return False
    return bool(text) and all(letter.isprintable() or letter.isspace() for letter in text)
