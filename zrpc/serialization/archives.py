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
import zlib
from typing import Final

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

    Raises `FrameError` when it is not one, `LimitExceeded` when its code is over `limit` bytes once unpacked.
    """
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as file:
            members = file.infolist()
            if len(members) > _MAX_MEMBERS:
                raise FrameError(f"not a TorchScript archive: it has {len(members)} members")
            wanted = sorted((m.filename.partition("/")[2], i) for i, m in enumerate(members))
            chosen = [(name, members[i]) for name, i in wanted if _counts(name)]
            total = sum(member.file_size for _, member in chosen)
            if total > limit:
                raise LimitExceeded("the code of a TorchScript function", total, limit)
            if not any(name.startswith("code/") for name, _ in chosen):
                raise FrameError("not a TorchScript archive: it has no code")
            if len({name for name, _ in chosen}) != len(chosen):
                raise FrameError("not a TorchScript archive: two members have one name")
            for name, member in chosen:
                data = file.read(member)
                encoded = name.encode()
                digest.update(b"%d %d " % (len(encoded), len(data)))
                digest.update(encoded)
                digest.update(data)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, OSError, ValueError, RuntimeError) as error:
        if isinstance(error, (FrameError, LimitExceeded)):
            raise
        raise FrameError(f"not a TorchScript archive: {error}") from None
    return digest.digest()


def method_hash(method: str, content: bytes) -> bytes:
    """The hash that names one method of a module with that content: apart from those of functions."""
    return hashlib.sha256(b"method " + method.encode() + b" of " + content).digest()
