"""TorchScript archives: what is in one, and the hash that names its code.

One rule: the hash covers what decides how the code runs, and nothing that differs between two processes with the same
source. An archive is a zip file; of its members count

    code/**.py              the source that TorchScript prints: no file names, no line numbers
    constants.pkl, constants/*   tensors that the code names
    version, byteorder      how the above is to be read

each as its name and its bytes, with their lengths, in the order of their names, without the archive's top folder. Left
out are debug files (they name source files), data (a module's state belongs to a call, not to its code) and ids.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Callable
from typing import Any, Final

import torch

from zrpc.errors import FrameError, LimitExceeded
from zrpc.wire.limits import DEFAULT_LIMITS

HASH_BYTES: Final = 32
_MAX_MEMBERS: Final = 10_000
_READING: Final = ("version", "byteorder", "constants.pkl")


def _counts(name: str) -> bool:
    if name.startswith("code/"):
        return name.endswith(".py")
    return name in _READING or name.startswith("constants/")


def content_hash(archive: bytes, limit: int = DEFAULT_LIMITS.code_bytes) -> bytes:
    """The 32 bytes that name the code in an archive.

    Raises `FrameError` when it is not one, `LimitExceeded` when it is over `limit` bytes once unpacked.
    """
    return _hash_of(_members(archive, limit, _counts))


def canonical(archive: bytes, limit: int) -> tuple[bytes, bytes]:
    """The content hash of an archive that somebody sent, and the archive packed anew.

    Two readers of zip files can be made to see different things in one file. What is hashed here is what is packed here,
    so it is also what torch reads. Raises as `content_hash` does.
    """
    members = _members(archive, limit, lambda name: not name.startswith(".data/"))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as packed:
        for name, data in members:
            packed.writestr(f"archive/{name}", data)
    return _hash_of([(name, data) for name, data in members if _counts(name)]), file.getvalue()


def _hash_of(members: list[tuple[str, bytes]]) -> bytes:
    digest = hashlib.sha256()
    for name, data in members:
        encoded = name.encode()
        digest.update(b"%d %d " % (len(encoded), len(data)))
        digest.update(encoded)
        digest.update(data)
    return digest.digest()


def _members(archive: bytes, limit: int, wanted: Callable[[str], bool]) -> list[tuple[str, bytes]]:
    """The members of an archive that are wanted, in the order of their names without the top folder."""
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as file:
            entries = file.infolist()
            if len(entries) > _MAX_MEMBERS:
                raise FrameError(f"not a TorchScript archive: it has {len(entries)} members")
            chosen = {name: e for e in entries if wanted(name := e.filename.partition("/")[2])}
            total = sum(entry.file_size for entry in chosen.values())
            if total > limit:
                raise LimitExceeded("a TorchScript archive", total, limit)
            if not any(name.startswith("code/") for name in chosen):
                raise FrameError("not a TorchScript archive: it has no code")
            return [(name, file.read(chosen[name])) for name in sorted(chosen)]
    except (FrameError, LimitExceeded, MemoryError):
        raise
    except Exception as error:  # zipfile and its decompressors raise whatever a damaged number leads to
        raise FrameError(f"not a TorchScript archive: {error}") from None


def method_hash(method: str, content: bytes) -> bytes:
    """The hash that names one method of a module with that content: apart from those of functions."""
    return hashlib.sha256(b"method " + method.encode() + b" of " + content).digest()


def load_archive(archive: bytes) -> Any:
    """The module in an archive, as torch's core has it, in a compilation unit of its own; tensors come to the CPU.

    Raises what torch raises (RuntimeError). The archive's code is compiled, not run.
    """
    unit = torch._C.CompilationUnit()
    load: Any = torch._C.import_ir_module_from_buffer
    return load(unit, archive, torch.device("cpu"), {}, False)
