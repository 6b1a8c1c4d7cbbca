"""The package as it is installed."""

import tomllib
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_the_installed_version_is_the_projects() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    assert version("slotcache") == project["version"]


def test_the_package_says_that_it_is_typed() -> None:
    assert files("slotcache").joinpath("py.typed").is_file()


@pytest.mark.parametrize(
    "lock", sorted((ROOT / "requirements").glob("*.lock")), ids=lambda p: p.stem
)
def test_a_lock_file_names_hashes_and_no_host(lock: Path) -> None:
    text = lock.read_text(encoding="utf-8")

    assert "--hash=sha256:" in text
    assert "://" not in text
    assert "index-url" not in text
