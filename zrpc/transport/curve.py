"""Keys: who may be in the cluster, and how that is proved.

One rule: nothing from a peer that has not proved its key reaches a decoder. A cluster has one secret of 32 bytes, kept in
a key file (mode 0600). From it each side derives its CURVE key pair, one for the broker and one for the members, by keyed
BLAKE2b over the cluster's name and the role; so whoever has the secret knows all public keys, and nothing is exchanged in
the clear. ZeroMQ's ZAP hook then admits the member key (and the broker's own) and counts everybody else.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import stat
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import zmq
from zmq.utils import z85

from zrpc.errors import ConfigError, KeyFileError

FORMAT = 1
MEMBER_FORMAT = 2
"""A key file for members only: without the cluster's secret, and so without the broker's."""
SECRET_BYTES = 32
ROLES = ("broker", "member")
_ZAP_ADDRESS = "inproc://zeromq.zap.01"


@dataclass(frozen=True)
class KeyPair:
    """A CURVE key pair, in ZeroMQ's Z85 text (40 bytes each)."""

    public: bytes
    secret: bytes = field(repr=False)


@dataclass(frozen=True)
class Keyring:
    """The cluster's keys, derived from its secret."""

    cluster: str
    secret: bytes = field(repr=False)

    def pair(self, role: str) -> KeyPair:
        """The key pair of a role, 'broker' or 'member'."""
        if role not in ROLES:
            raise ValueError(f"no role {role!r}; there are {ROLES}")
        raw = hashlib.blake2b(
            f"{self.cluster}\0{role}".encode(), digest_size=32, key=self.secret, person=b"zrpc curve key"
        ).digest()
        secret = z85.encode(raw)
        return KeyPair(zmq.curve_public(secret), secret)

    def fingerprint(self) -> str:
        """Sixteen hex digits that tell two secrets apart and reveal nothing of them."""
        return hashlib.blake2b(self.secret, digest_size=8, person=b"zrpc key id").hexdigest()

    def for_members(self) -> MemberKeyring:
        """What a member needs: its own pair, and the broker's public key. Nobody can act as the broker with it."""
        return MemberKeyring(self.cluster, b"", self.pair("broker").public, self.pair("member"), self.fingerprint())

    def to_json(self) -> str:
        """The text of a key file."""
        return json.dumps({"zrpc-key": FORMAT, "cluster": self.cluster, "secret": self.secret.hex()})


@dataclass(frozen=True)
class MemberKeyring(Keyring):
    """A cluster's keys without the broker's secret."""

    broker: bytes = b""
    """The broker's public key."""
    member: KeyPair = KeyPair(b"", b"")
    named: str = ""
    """The fingerprint of the whole keyring."""

    def pair(self, role: str) -> KeyPair:
        """As of a whole keyring, but the broker's pair has no secret half."""
        if role not in ROLES:
            raise ValueError(f"no role {role!r}; there are {ROLES}")
        return self.member if role == "member" else KeyPair(self.broker, b"")

    def fingerprint(self) -> str:
        return self.named

    def for_members(self) -> MemberKeyring:
        return self

    def to_json(self) -> str:
        texts = {"broker": self.broker.decode(), "member": self.member.secret.decode(), "fingerprint": self.named}
        return json.dumps({"zrpc-key": MEMBER_FORMAT, "cluster": self.cluster, **texts})


def new_keyring(cluster: str) -> Keyring:
    """A fresh secret for a cluster."""
    return Keyring(cluster, secrets.token_bytes(SECRET_BYTES))


def write_key_file(keyring: Keyring, path: str | os.PathLike[str]) -> Path:
    """Write a key file that only its owner can read. Raises `KeyFileError` when it exists already."""
    target = Path(path)
    text = keyring.to_json() + "\n"
    try:
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise KeyFileError(str(target), "it exists already", "Remove it first, or name another file.") from None
    except OSError as error:
        raise KeyFileError(str(target), f"cannot be written ({error.strerror})", "Name a writable place.") from None
    with os.fdopen(fd, "w", encoding="ascii") as stream:
        stream.write(text)
    return target


def load_key_file(path: str | os.PathLike[str]) -> Keyring:
    """Read a key file. Raises `KeyFileError` when it is missing, malformed or open to others than its owner."""
    target = Path(path)
    try:
        with target.open("r", encoding="ascii") as stream:
            status = os.fstat(stream.fileno())
            text = stream.read(65536)
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror or str(error) if isinstance(error, OSError) else "it is not text"
        raise KeyFileError(str(target), why, "`zrpc launch` makes one, `zrpc broker --new-key FILE` too.") from None
    if os.name == "posix":
        if stat.S_IMODE(status.st_mode) & 0o077:
            raise KeyFileError(
                str(target),
                f"others than its owner can read or write it (mode {stat.S_IMODE(status.st_mode):04o})",
                f"Run: chmod 600 {target}",
            )
        if status.st_uid not in (os.geteuid(), 0):
            raise KeyFileError(str(target), f"it belongs to user {status.st_uid}", "Use a file of your own.")
    return parse_key(text, str(target))


def parse_key(text: str, source: str) -> Keyring:
    """The keyring in a key file's text. Raises `KeyFileError` when it is malformed."""
    remedy = "It should be a file that `zrpc launch` or `zrpc broker --new-key` made."
    try:
        value = json.loads(text)
        if value["zrpc-key"] == MEMBER_FORMAT:
            return _member_keyring(value)
        version, cluster, secret = value["zrpc-key"], value["cluster"], bytes.fromhex(value["secret"])
    except (AttributeError, ValueError, KeyError, TypeError):
        raise KeyFileError(source, "it is not a zrpc key file", remedy) from None
    if version != FORMAT:
        raise KeyFileError(source, f"it has format {version!r}, this version reads {FORMAT}", remedy)
    if not isinstance(cluster, str) or len(secret) != SECRET_BYTES:
        raise KeyFileError(source, f"its secret is {len(secret)} bytes, not {SECRET_BYTES}", remedy)
    return Keyring(cluster, secret)


def _member_keyring(value: Mapping[str, str]) -> MemberKeyring:
    """Raises `ValueError`, `KeyError` or `TypeError` for what is none."""
    cluster, named = value["cluster"], value["fingerprint"]
    broker, secret = value["broker"].encode("ascii"), value["member"].encode("ascii")
    if (
        not isinstance(cluster, str)
        or not isinstance(named, str)
        or any(len(z85.decode(k)) != 32 for k in (broker, secret))
    ):
        raise ValueError("no member's key")
    return MemberKeyring(cluster, b"", broker, KeyPair(zmq.curve_public(secret), secret), named)


def require_curve() -> None:
    """Raise `ConfigError` when this build of ZeroMQ has no CURVE."""
    if not zmq.has("curve"):
        raise ConfigError("ZeroMQ", ["this build has no CURVE: install the pyzmq wheels, or set security: off"])


class Doorkeeper:
    """Answers ZeroMQ's authentication requests (ZAP, RFC 27): lets the allowed keys in, counts the others.

    A thread of its own, blocked in a receive: it runs once for each new connection and costs nothing otherwise.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], allowed: frozenset[bytes]) -> None:
        self._allowed = allowed
        self.refused: Counter[str] = Counter()
        self._socket = context.socket(zmq.REP)
        self._socket.linger = 0
        self._socket.bind(_ZAP_ADDRESS)
        self._thread = threading.Thread(target=self._run, name="zrpc-doorkeeper", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while True:
                request = self._socket.recv_multipart()
                self._socket.send_multipart(self._answer(request))
        except zmq.ContextTerminated:
            pass
        finally:
            self._socket.close()

    def _answer(self, request: list[bytes]) -> list[bytes]:
        if len(request) < 7 or request[0] != b"1.0":
            self.refused["malformed"] += 1
            return [b"1.0", request[1] if len(request) > 1 else b"", b"500", b"malformed", b"", b""]
        if request[5] != b"CURVE":
            self.refused["not encrypted"] += 1
            return [b"1.0", request[1], b"400", b"CURVE is required", b"", b""]
        from_z85 = z85.encode(request[6])
        if from_z85 not in self._allowed:
            self.refused["unknown key"] += 1
            return [b"1.0", request[1], b"400", b"unknown key", b"", b""]
        return [b"1.0", request[1], b"200", b"OK", from_z85, b""]

    def join(self) -> None:
        self._thread.join(timeout=5)
