"""The rules of the house: who may import whom, what is pure, what is imported lazily."""

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import lazyfs

ROOT = Path(lazyfs.__file__).parent

# Nothing else lies loose at the top.
TOP = {"__init__.py", "__main__.py"}

_LOW = {"core", "system", "protocols"}

# A package, and the packages or modules it may import beside itself. Data flows one way:
# front ends -> formats -> prefetch -> cache -> sources; no package imports a higher one.
MAY_IMPORT: dict[str, set[str]] = {
    "core": set(),
    "system": {"core"},
    "protocols": {"core"},
    "formats": {"core"},
    "sources": _LOW,
    "cache": _LOW,
    "prefetch": _LOW,
    "frontends": _LOW,
    "images": _LOW | {"formats", "sources", "cache", "prefetch"},
    "daemon": _LOW | {"formats", "images", "frontends"},
    # Beside these, all pure modules.
    "cli": {"core", "system", "images", "daemon", "cache.maintenance", "prefetch.files"},
    "testing": {"core"},
    "__main__": {"cli"},
    "__init__": set(),
}

PURE = (
    "cache/bitmap.py",
    "cache/clock.py",
    "cache/counts.py",
    "cache/fill.py",
    "cache/plan.py",
    "core/backoff.py",
    "cache/state.py",
    "core/address.py",
    "core/device.py",
    "core/errors.py",
    "core/options.py",
    "core/ranges.py",
    "core/texts.py",
    "formats/filesystems.py",
    "formats/layer.py",
    "formats/partition.py",
    "formats/reading.py",
    "formats/registry.py",
    "formats/slice.py",
    "core/view.py",
    "formats/filecontent.py",
    "formats/iso/__init__.py",
    "formats/iso/catalog.py",
    "formats/iso/reader.py",
    "formats/iso/records.py",
    "formats/iso/rockridge.py",
    "formats/iso/udf.py",
    "formats/iso/volume.py",
    "formats/iso/walk9660.py",
    "formats/iso/walkudf.py",
    "formats/savedtree.py",
    "formats/squashfs.py",
    "formats/tree.py",
    "formats/treebuilder.py",
    "prefetch/covered.py",
    "prefetch/neighbourhood.py",
    "prefetch/preload.py",
    "prefetch/profile.py",
    "prefetch/readahead.py",
    "protocols/control.py",
    "protocols/nbd.py",
    "protocols/nbdclient.py",
    "protocols/nbdnetlink.py",
    "protocols/nbdserver.py",
    "sources/headers.py",
    "sources/http1.py",
    "sources/httprange.py",
    "sources/learned.py",
    "sources/link.py",
    "sources/proxies.py",
    "sources/stall.py",
    "sources/zeros.py",
    "testing/damage.py",
)
IMPURE_MODULES = {"trio", "httpx", "pyfuse3", "os", "time", "socket", "random", "logging"}

# Foreign packages that these files alone may import, wherever in them.
OWNERS = {
    "httpx": ("sources/fallback.py",),
    "pyfuse3": ("frontends/fuse.py", "frontends/fuseimages.py", "frontends/fusetree.py"),
    "pycdlib": ("cli/tour/writer.py",),
    "prometheus_client": ("daemon/metrics.py",),
}

FILES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py"))


def at_module_level(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes that run on import: everything but the bodies of functions."""
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield node
            yield from at_module_level(node)


def imports(file: str, *, everywhere: bool = True) -> set[str]:
    """The modules that a file imports, in full: ``lazyfs.core.address``.

    What ``from x import y`` names is a module where there is such a file, else a part of ``x``.
    ``everywhere``: inside functions and under ``TYPE_CHECKING`` too.
    """
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree) if everywhere else at_module_level(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno} imports relatively"
            assert node.module
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if is_ours(inner) else node.module)
    return found


def is_ours(module: str) -> bool:
    path = ROOT.joinpath(*module.split(".")[1:])
    return module.startswith("lazyfs.") and (path.is_dir() or path.with_suffix(".py").is_file())


def ours_in(file: str) -> set[str]:
    return {m for m in imports(file) if m.startswith("lazyfs.")}


def part_of(file: str) -> str:
    """``cache`` for ``cache/plan.py``, ``__main__`` for ``__main__.py``."""
    return file.split("/")[0].removesuffix(".py")


def path_of(module: str) -> str:
    """``cache/plan.py`` for ``lazyfs.cache.plan``, ``cache/__init__.py`` for ``lazyfs.cache``."""
    path = module.removeprefix("lazyfs").lstrip(".").replace(".", "/")
    return f"{path}/__init__.py".lstrip("/") if (ROOT / path).is_dir() else f"{path}.py"


def allowed(module: str, part: str) -> bool:
    name = module.removeprefix("lazyfs.")
    top = name.split(".")[0]
    pure = part == "cli" and path_of(module) in PURE
    return top == part or pure or bool({name, top} & MAY_IMPORT[part])


def test_nothing_lies_loose_at_the_top() -> None:
    assert {file for file in FILES if "/" not in file} == TOP
    assert {part_of(file) for file in FILES} == set(MAY_IMPORT)


@pytest.mark.parametrize("file", FILES)
def test_imports_follow_the_table(file: str) -> None:
    part = part_of(file)
    assert {module for module in ours_in(file) if not allowed(module, part)} == set()


def test_the_check_sees_breaches() -> None:
    assert not allowed("lazyfs.cache.plan", "sources")
    assert not allowed("lazyfs.sources.http", "cli")
    assert not allowed("lazyfs.daemon.mount", "frontends")
    assert not allowed("lazyfs.images.open", "cache")
    assert allowed("lazyfs.core.address", "cli")
    assert allowed("lazyfs.prefetch.profile", "cli")
    assert "lazyfs.cache.plan" in imports("cache/blockcache.py")
    assert "lazyfs.core.address" in imports("sources/http.py")
    assert "lazyfs.daemon.mount" in imports("cli/mount.py")  # inside a function


def cycle_in(graph: dict[str, set[str]]) -> list[str]:
    """A cycle of a graph; empty if there is none."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def test_no_module_imports_itself_in_a_circle() -> None:
    assert cycle_in({file: {path_of(m) for m in ours_in(file)} - {file} for file in FILES}) == []


def test_no_package_imports_itself_in_a_circle() -> None:
    graph: dict[str, set[str]] = {}
    for file in FILES:
        found = graph.setdefault(part_of(file), set())
        found |= {part_of(path_of(module)) for module in ours_in(file)}
        found.discard(part_of(file))
    assert cycle_in(graph) == []


def test_the_check_sees_circles() -> None:
    assert cycle_in({"a": {"b"}, "b": {"a"}}) != []


@pytest.mark.parametrize("file", PURE)
def test_pure_modules_import_nothing_that_acts(file: str) -> None:
    assert {m for m in imports(file) if m.split(".")[0] in IMPURE_MODULES} == set()


@pytest.mark.parametrize("file", PURE)
def test_pure_modules_import_only_pure_modules_of_ours(file: str) -> None:
    ours = {m for m in imports(file) if m.startswith("lazyfs.")}
    assert {path_of(m) for m in ours} <= set(PURE)


@pytest.mark.parametrize(("package", "owners"), OWNERS.items())
def test_a_package_and_who_may_use_it(package: str, owners: tuple[str, ...]) -> None:
    users = {f for f in FILES if package in {m.split(".")[0] for m in imports(f)}}
    assert users <= set(owners)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--version"], "lazyfs "),
        (["--help"], "MOUNTPOINT"),
        ([], "MOUNTPOINT"),
        (["--help-all"], "MOUNTPOINT"),
        (["help"], "MOUNTPOINT"),
    ],
)
def test_help_and_version_import_nothing_heavy(arguments: list[str], says: str) -> None:
    """They have to answer at once, and where FUSE is not installed."""
    script = (
        "import sys\n"
        "from lazyfs.cli.main import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "heavy = {'trio', 'httpx', 'pyfuse3', 'pycdlib', 'rich'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert says in done.stdout
