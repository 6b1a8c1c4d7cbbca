"""The wheel, alone in an empty environment."""

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"

WITHOUT_GREENLET = """
from slotcache.sql import AsyncSqlSlots

try:
    AsyncSqlSlots.sqlite(":memory:")
except ImportError as error:
    assert "pip install 'slotcache[async]'" in str(error), error
else:
    raise AssertionError("asyncio needs more than this")
"""


@pytest.mark.skipif(not README.exists(), reason="there is no README.md yet")
def test_the_readmes_first_example_runs_on_the_wheel_alone(tmp_path: Path) -> None:
    example = first_python_block(README.read_text(encoding="utf-8"))
    python = install_alone(build_wheel(tmp_path), tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()

    run(str(python), "-I", "-c", example, cwd=empty)
    run(str(python), "-I", "-c", WITHOUT_GREENLET, cwd=empty)

    assert len(example.splitlines()) <= 15


def first_python_block(text: str) -> str:
    found = re.search(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert found, "README.md has no python block"
    return found[1]


def build_wheel(folder: Path) -> Path:
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder), cwd=ROOT)
    [wheel] = folder.glob("*.whl")
    return wheel


def install_alone(wheel: Path, folder: Path) -> Path:
    """Install the wheel and what it asks for, at the versions and hashes of the test lock."""
    python = folder / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    wanted = folder / "wanted.txt"
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    wanted.write_text(f"{wheel} --hash=sha256:{digest}\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-qq"]
    options = ["--no-cache-dir", "--disable-pip-version-check", "--only-binary", ":all:"]
    locked = ["-r", str(wanted), "-c", str(ROOT / "requirements" / "test.lock")]

    run(sys.executable, "-m", "venv", "--without-pip", str(folder / "venv"), cwd=folder)
    run(*pip, *options, *locked, cwd=folder)
    return python


def run(*command: str, cwd: Path) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
