"""The code blocks of the docs are tests: each page is one program."""

import shlex
from pathlib import Path

import pytest
from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SERVER = "localhost:6379"  # where the reader's is; here it stands for one of the test's own
BESIDE_A_SERVER = [page for page in PAGES if SERVER in page.read_text(encoding="utf-8")]


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", [page for page in PAGES if page not in BESIDE_A_SERVER], ids=name)
def test_a_page_runs_from_top_to_bottom(page: Path) -> None:
    for example in Sybil([PythonCodeBlockParser()]).parse(page).examples():
        example.evaluate()


@pytest.mark.parametrize("page", BESIDE_A_SERVER, ids=name)
def test_a_page_runs_beside_a_server(page: Path, own_redis, tmp_path) -> None:
    here = tmp_path / page.name
    text = page.read_text(encoding="utf-8")
    here.write_text(text.replace(SERVER, f"127.0.0.1:{own_redis.port}"), encoding="utf-8")

    def ask(example: Example) -> None:
        """Send what a reader sends by redis-cli: whatever it asks about is there."""
        for line in example.parsed.replace("\\\n", "").splitlines():
            assert line.startswith("$ redis-cli ")
            words = shlex.split(line)[2:]
            if words[:2] == ["--scan", "--pattern"]:
                words[:2] = ["KEYS"]
            answer = own_redis.command(*words)
            answers = answer if isinstance(answer, list) else [answer]
            assert answers, line
            assert not {None, 0, -2} & set(answers), line

    sybil = Sybil([PythonCodeBlockParser(), CodeBlockParser("console", ask)])
    for example in sybil.parse(here).examples():
        example.evaluate()
