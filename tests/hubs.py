"""What the API of Hugging Face answers about one repository, owner/name, which has the files of a served folder."""

import hashlib
import json
import re

from range_servers import Asked, Handler, RangeServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def answer_as_hub(server: RangeServer, handler: Handler, asked: Asked) -> bool:
    """Answers what is asked of the API, and leads to the file from the address at which the hub has it.

    That of large files is signed.
    """
    if re.fullmatch(rf"/api/models/owner/name/revision/(main|{COMMIT}|refs%2Fpr%2F1)\?blobs=[Tt]rue", asked.path):
        files = [path for path in sorted(server.folder.rglob("*")) if path.is_file()]
        siblings = [_sibling(path.relative_to(server.folder).as_posix(), path.read_bytes()) for path in files]
        said = {"id": "owner/name", "modelId": "owner/name", "_id": "1", "sha": COMMIT, "siblings": siblings}
        handler.answer(200, {"Content-Type": "application/json"}, json.dumps(said).encode())
        return True
    resolved = re.fullmatch(rf"/owner/name/resolve/{COMMIT}/(.+)", asked.path)
    if resolved and resolved[1].endswith(".safetensors"):
        handler.answer(
            302, {"Location": f"{server.address.replace('127.0.0.1', 'localhost')}/{resolved[1]}?sig=hidden"}
        )
        return True
    if resolved:
        handler.path = f"/{resolved[1]}"
        return False
    if asked.path.endswith("?sig=hidden"):
        return False
    handler.answer(404)
    return True


def _sibling(name: str, content: bytes) -> dict[str, object]:
    told: dict[str, object] = {"rfilename": name, "size": len(content), "blobId": hashlib.sha1(content).hexdigest()}
    if name.endswith(".safetensors"):
        told["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return told
