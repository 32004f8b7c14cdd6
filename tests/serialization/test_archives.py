"""The hash of an archive covers the code, and nothing else."""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import scripted
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zrpc.errors import FrameError, LimitExceeded
from zrpc.serialization.archives import canonical, content_hash, load_archive, method_hash
from zrpc.serialization.script import describe

ARCHIVE = describe(scripted.calls_another).archive()

HASHER = """
import sys
sys.path.insert(0, sys.argv[1])
import scripted
from zrpc.serialization.script import describe
print(describe(scripted.calls_another).hash.hex(), describe(scripted.take_counter).hash.hex())
"""


def test_the_same_source_elsewhere_has_the_same_hash(tmp_path: Path) -> None:
    # Another folder, other line numbers.
    (tmp_path / "scripted.py").write_text("# moved\n\n\n" + Path(scripted.__file__).read_text())
    run = subprocess.run([sys.executable, "-c", HASHER, str(tmp_path)], capture_output=True, check=True, timeout=100)
    ours = [describe(f).hash.hex() for f in (scripted.calls_another, scripted.take_counter)]
    assert run.stdout.decode().split() == ours


def test_other_code_has_another_hash() -> None:
    functions = (scripted.add, scripted.calls_another, scripted.take_counter, scripted.make_point)
    assert len({describe(f).hash for f in functions}) == len(functions)


def test_a_modules_state_is_not_in_its_hash() -> None:
    modules = [torch.jit.script(scripted.Scaler(f)) for f in (1.0, 2.0)]
    hashes = {describe(m.forward).hash for m in modules}
    assert len(hashes) == 1
    assert method_hash("forward", bytes(32)) != method_hash("called", bytes(32))


def repacked(**changes: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(ARCHIVE)) as old, zipfile.ZipFile(file, "w") as new:
        for name in old.namelist():
            new.writestr(name, changes.get(name.rpartition("/")[2].partition(".")[0], old.read(name)))
    return file.getvalue()


def test_packing_does_not_matter_and_members_do() -> None:
    assert content_hash(repacked()) == content_hash(ARCHIVE)
    assert content_hash(repacked(serialization_id=b"x")) == content_hash(ARCHIVE)
    assert content_hash(repacked(version=b"1\n")) != content_hash(ARCHIVE)
    assert content_hash(repacked(scripted=b"def f(): pass")) != content_hash(ARCHIVE)


def test_a_bomb_is_not_unpacked() -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("archive/code/a.py", bytes(1 << 20))
    with pytest.raises(LimitExceeded):
        content_hash(file.getvalue(), limit=1 << 16)


@pytest.mark.parametrize("archive", [b"", b"PK", b"x" * 100, ARCHIVE[:-30]])
def test_what_is_no_archive(archive: bytes) -> None:
    with pytest.raises(FrameError):
        content_hash(archive)


@settings(max_examples=100)
@given(st.integers(0, len(ARCHIVE) - 1), st.integers(0, 255))
def test_damage_is_found_or_harmless(position: int, value: int) -> None:
    damaged = bytearray(ARCHIVE)
    damaged[position] = value
    try:
        content_hash(bytes(damaged))
    except (FrameError, LimitExceeded):
        pass


def test_loading() -> None:
    x = torch.ones(2)
    assert torch.equal(load_archive(ARCHIVE)._get_method("forward")(x), scripted.calls_another(x))


def test_a_canonical_archive_has_what_was_hashed() -> None:
    hash, packed = canonical(repacked(serialization_id=b"x"), 1 << 20)
    assert hash == content_hash(ARCHIVE) == content_hash(packed)
    x = torch.ones(2)
    assert torch.equal(load_archive(packed)._get_method("forward")(x), scripted.calls_another(x))
    assert canonical(packed, 1 << 20)[0] == hash
