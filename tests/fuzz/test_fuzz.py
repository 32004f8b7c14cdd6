"""Parsers of bytes from others neither crash nor accept what is wrong: with hypothesis here, for hours with `fuzz.py`."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import fuzz
import pytest
from fuzz_targets import (
    BROKER_READS,
    MEMBER_READS,
    STANDBY_READS,
    Target,
    WrongAccept,
    join,
    run_grammar,
    split,
    targets,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from zrpc.errors import FrameError
from zrpc.serialization.archives import content_hash
from zrpc.serialization.rebuild import StorageReader

FOUND = targets()
NAMES = sorted(FOUND)


@pytest.mark.parametrize("name", NAMES)
def test_good_inputs_are_taken(name: str) -> None:
    target = FOUND[name]
    taken = [target.run(seed) for seed in target.seeds]
    assert any(taken)
    assert all(taken) or name in ("to broker", "to member", "to standby"), taken


KNOWN = (("to broker", BROKER_READS), ("to member", MEMBER_READS), ("to standby", STANDBY_READS))


def test_every_message_has_a_good_input() -> None:
    for name, known in KNOWN:
        taken = {seed[0] for seed in FOUND[name].seeds if FOUND[name].run(seed)}
        assert taken == set(range(len(known))), sorted(known)


@pytest.mark.parametrize("name", NAMES)
@given(data=st.binary(max_size=300))
def test_noise(name: str, data: bytes) -> None:
    FOUND[name].run(data)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60)
@given(seed=st.integers(0, 1 << 60))
def test_damaged_inputs(name: str, seed: int) -> None:
    target, chance = FOUND[name], random.Random(seed)
    for _ in range(20):
        target.run(fuzz.mutate(chance.choice(target.seeds), chance, target.seeds))


@given(st.lists(st.binary(max_size=50), max_size=5))
def test_inputs_of_several_frames(parts: list[bytes]) -> None:
    assert split(join(parts)) == parts


# ----------------------------------------------------------------------------------- what was found, and is mended


def test_an_offset_beyond_all_files_in_an_archive() -> None:
    archive = bytearray(FOUND["archive"].seeds[0])
    at = archive.rindex(b"PK\x05\x06")
    archive[at + 12 : at + 20] = b"\xff" * 8
    zip64 = archive.find(b"PK\x06\x06")
    if zip64 >= 0:
        archive[zip64 + 40 : zip64 + 56] = b"\x7f" * 16
    with pytest.raises(FrameError):
        content_hash(bytes(archive))


def test_a_tensor_of_a_quantized_dtype_without_a_quantizer() -> None:
    """torch warns once, and makes one: what is an error in tests would be taken elsewhere."""
    with pytest.raises(FrameError, match="needs a quantizer"):
        StorageReader([b"12345678"]).view(0, 30, 0, (2,), (1,), 0, None)
    with pytest.raises(FrameError, match="needs a quantizer"):
        StorageReader([]).meta(30, (2,), (1,), 0)


# -------------------------------------------------------------------------------------- findings are found, and said


def test_a_wrong_accept_is_a_finding(capsys: pytest.CaptureFixture[str]) -> None:
    def run(data: bytes) -> bool:
        if len(data) % 7 == 3:
            raise WrongAccept("planted")
        return True

    fuzzer = fuzz.Fuzzer([Target("planted", (b"seed",), run)], 1)
    fuzzer.batch(fuzzer.chosen[0])
    assert 0 < fuzzer.findings < fuzz.BATCH
    assert "FINDING in planted: " in capsys.readouterr().out
    assert fuzzer.report().endswith(f"{fuzz.BATCH} inputs, {fuzzer.findings} findings")


def test_an_opcode_outside_of_the_grammar_would_be_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fuzz_targets.check_body", lambda body: None)
    with pytest.raises(WrongAccept, match="GLOBAL"):
        run_grammar(b"\x80\x05cos\nsystem\n.")


def test_the_command_bounds_memory_and_counts() -> None:
    done = subprocess.run(
        [sys.executable, str(Path(fuzz.__file__)), "--minutes", "0.01", "--seed", "5", "--only", "grammar"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "seed 5"
    assert done.stdout.splitlines()[-1].endswith("inputs, 0 findings")


def test_what_coverage_is_measured_of() -> None:
    found = {f"{function.__module__}.{function.__qualname__}" for function in fuzz.functions_of("zrpc")}
    assert {"zrpc.wire.records.split_record", "zrpc.channel.bulk.Bulk._take_note"} <= found
    assert not any(name.startswith("torch") for name in found)
