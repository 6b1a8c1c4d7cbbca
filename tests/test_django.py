"""The example of a Django project: its own tests, each on a real database, and its page."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROJECT = ROOT / "examples" / "django_shop"
PAGE = ROOT / "docs" / "how-to" / "django.md"

# What the databases have a say in. All else is tested on SQLite alone.
OF_EACH_DATABASE = ["shop.tests.OrderTest", "shop.tests.InsideAtomicTest"]

MANAGE = "from django.core.management import execute_from_command_line as run; run()"
IN_PLACE_OF_MYSQLCLIENT = "import pymysql; pymysql.install_as_MySQLdb()"


def manage(*arguments: str, data: Path, database: str = "", first: str = "") -> str:
    """Run a command of the project as manage.py does; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-B", "-W", "error", "-c", f"{first}\n{MANAGE}", *arguments],
        cwd=PROJECT,
        env={
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "settings",
            "SHOP_DATA": str(data),
            "SHOP_DATABASE": database,
        },
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_project_keeps_its_promises_on_sqlite(tmp_path: Path) -> None:
    manage("test", "--noinput", data=tmp_path)


def test_the_project_keeps_its_promises_on_postgresql(postgres_url: str, tmp_path: Path) -> None:
    manage("test", "--noinput", *OF_EACH_DATABASE, data=tmp_path, database=postgres_url)


def test_the_project_keeps_its_promises_on_mariadb(mariadb_url: str, tmp_path: Path) -> None:
    manage(
        *("test", "--noinput", *OF_EACH_DATABASE),
        data=tmp_path,
        database=mariadb_url,
        first=IN_PLACE_OF_MYSQLCLIENT,
    )


def test_each_block_of_the_page_stands_word_for_word_in_the_project() -> None:
    files = "\n".join(path.read_text(encoding="utf-8") for path in sorted(PROJECT.rglob("*.py")))
    blocks = re.findall(r"```py\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)

    assert blocks
    assert [block for block in blocks if block not in files] == []
