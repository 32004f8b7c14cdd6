"""Tensors and modules on a device that is not the CPU, in a process of their own: see `hostdevice`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.integration
def test_on_a_device() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "ondevice.py")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=110, cwd=HERE.parent.parent)
    assert ended.returncode == 0, ended.stdout + ended.stderr
