"""Each pair of twins has one public surface: the names, the signatures, the docstrings."""

import ast
import inspect
from typing import Any

import pytest

import slotcache
from slotcache import file, memory, protocols, redis, service, sql, testing

MODULES = (slotcache, file, memory, protocols, redis, service, sql, testing)

# What is for both worlds, or for one alone, and why.
WITHOUT_TWIN = {
    "MemoryCache": "never waits, so it serves both worlds",
    "MemoryLocks": "never waits, so they serve both worlds",
    "FileCache": "a system has no files that do not block: called in threads",
    "FileLocks": "as FileCache",
    "clear_on_write": "listens, and waits for nothing: takes the sessions of both worlds",
    "render_item": "alembic blocks",
    "HoldMixin": "columns",
}

ONLY_HERE = {
    "__enter__": "__aenter__",
    "__exit__": "__aexit__",
}
"""The methods of a blocking one by other names."""


def twins() -> list[tuple[Any, Any]]:
    """Every public object with the twin whose name begins with Async."""
    found = {}
    for module in MODULES:
        for name in module.__all__:
            kind = "async_" if name[0].islower() else "Async"
            if not name.startswith(kind):
                other = getattr(module, kind + name, None)
                if other is not None:
                    found[name] = getattr(module, name), other
    return [found[name] for name in sorted(found)]


each_pair = pytest.mark.parametrize(
    ("one", "other"), twins(), ids=lambda pair: getattr(pair, "__name__", None)
)
each_class = pytest.mark.parametrize(
    ("one", "other"),
    [pair for pair in twins() if inspect.isclass(pair[0])],
    ids=lambda pair: getattr(pair, "__name__", None),
)


def methods(kind: type[Any]) -> dict[str, Any]:
    """What a user may call, or read, on it."""
    found: dict[str, tuple[Any, Any]] = {}
    for base in reversed(kind.__mro__):
        if base.__module__.startswith("slotcache"):
            found.update(vars(base))
    special = {"__init__", "__call__", *ONLY_HERE, *ONLY_HERE.values()}
    return {
        name: member
        for name, member in found.items()
        if (not name.startswith("_") or name in special) and not name.startswith("_abc")
    }


def parameters(function: Any) -> list[tuple[str, Any, Any]]:
    """The parameters without their types."""
    function = getattr(function, "__func__", function)
    return [
        (each.name, each.kind, repr(each.default))
        for each in inspect.signature(function).parameters.values()
    ]


def test_there_are_as_many_pairs_as_there_should_be() -> None:
    names = {one.__name__ for one, _ in twins()}
    assert names >= {
        "CacheBackend",
        "Clock",
        "Event",
        "HoldManager",
        "InvalidationHook",
        "LockProvider",
        "RedisCache",
        "RedisLocks",
        "SlotAvailabilityService",
        "SlotRepository",
        "SqlSlots",
        "clear_after",
        "clear_on_commit",
    }


def test_what_waits_has_a_twin() -> None:
    paired = {one.__name__ for one, _ in twins()}
    waiting = {
        name
        for module in (file, memory, redis, sql)
        for name in module.__all__
        if not name.startswith(("Async", "async_"))
    }
    assert waiting - paired == set(WITHOUT_TWIN)


@each_class
def test_the_methods_of_both_are_the_same(one: type[Any], other: type[Any]) -> None:
    expected = {ONLY_HERE.get(name, name) for name in methods(one)}
    assert set(methods(other)) == expected


@each_class
def test_the_parameters_of_both_are_the_same(one: type[Any], other: type[Any]) -> None:
    theirs = methods(other)
    for name, member in methods(one).items():
        if callable(getattr(member, "__func__", member)):
            twin = theirs[ONLY_HERE.get(name, name)]
            assert parameters(twin) == parameters(member), f"{one.__name__}.{name}"


@each_pair
def test_functions_take_the_same(one: Any, other: Any) -> None:
    assert parameters(other) == parameters(one)


@each_class
def test_what_is_read_without_a_call_is_read_so_in_both(one: type[Any], other: type[Any]) -> None:
    theirs = methods(other)
    for name, member in methods(one).items():
        twin = theirs[ONLY_HERE.get(name, name)]
        assert isinstance(twin, property) is isinstance(member, property), name


@each_pair
def test_the_docstring_of_one_leads_to_the_other(one: Any, other: Any) -> None:
    assert f"`{one.__name__}`" in (inspect.getdoc(other) or "").splitlines()[0]


@each_class
def test_the_docstring_of_each_method_leads_to_its_twin(one: type[Any], other: type[Any]) -> None:
    for name, member in methods(other).items():
        if name.startswith("_"):
            continue
        documented = getattr(member, "__func__", member)
        if not (callable(documented) or isinstance(documented, property)):
            continue
        first = (inspect.getdoc(documented) or "").splitlines()[:1]
        if documented.__doc__:
            assert first == [f"As `{one.__name__}.{name}`."] or first[0].startswith(
                f"As `{one.__name__}.{name}`"
            ), f"{other.__name__}.{name}: {first}"


@each_class
def test_arguments_that_are_described_are_described_in_both(
    one: type[Any], other: type[Any]
) -> None:
    def described(kind: type[Any]) -> list[str]:
        lines = (inspect.getdoc(kind) or "").partition("Args:\n")[2].splitlines()
        indented = [line for line in lines if line.startswith("    ") and line[4] != " "]
        return [line.split(":")[0].strip() for line in indented if ":" in line]

    names = [name for name, *_ in parameters(one)] if "__init__" in vars(one) else []
    mine = [name for name in described(one) if name in names]
    theirs = [name for name in described(other) if name in names]
    assert theirs == mine


@each_class
def test_each_twin_stands_below_its_sibling(one: type[Any], other: type[Any]) -> None:
    assert other.__module__ == one.__module__
    source = inspect.getsource(inspect.getmodule(one))  # type: ignore[arg-type]
    classes = [node.name for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    public = [name for name in classes if not name.startswith("_")]
    assert public.index(other.__name__) == public.index(one.__name__) + 1


@each_pair
def test_what_waits_in_one_is_awaited_in_the_other(one: Any, other: Any) -> None:
    if not inspect.isclass(one):
        return
    never_wait = {"ddl", "hook_failures", "health", "stats", "locks", "now", "event", "set"}
    never_wait |= {"within", "sqlite", "__init__"}
    for name, member in methods(other).items():
        member = getattr(member, "__func__", member)
        if inspect.isfunction(member) and name != "__call__":
            assert inspect.iscoroutinefunction(member) is (name not in never_wait), name
