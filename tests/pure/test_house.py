"""Who may import whom, what is pure, and what is imported only when it is needed."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import lazyfs

ROOT = Path(lazyfs.__file__).parent

# What every layer may use.
COMMON = {
    "lazyfs",
    "filelocks",
    "wholefiles",
    "headers",
    "texts",
    "view",
    "device",
    "errors",
    "ranges",
    "options",
    "protocols",
    "mounts",
    "programs",
}

# What the life of a daemon may use, whatever it does with its images.
DAEMON = COMMON | {"daemon", "stack", "frontends", "logs", "background", "preloading", "steering"}
DAEMON |= {"ending"}

# Part of the house: what it may import beside itself. A part is a package or a module of lazyfs.
MAY_IMPORT = {
    "lazyfs": set(),
    "__main__": {"cli"},
    "cli": {
        "lazyfs",
        "attach",
        "detach",
        "mount",
        "loopmount",
        "serve",
        "unmount",
        "caches",
        "access",
        "catalogs",
        "isofile",
        "extraction",
        "texts",
        "formats",
        "prefetch",
        "logs",
        "iso",
        "options",
        "errors",
        "sources.urls",
        "demo",
        "control",
        "metrics",
        "config",
        "headers",
        "wholefiles",
    },
    "attach": DAEMON | {"detach"},
    "detach": COMMON | {"frontends"},
    "storagedaemon": {"errors"},
    "caches": COMMON | {"cache", "sources.urls"},
    "access": COMMON | {"stack", "sources", "ending"},
    "config": {"errors"},
    "control": COMMON,
    "metrics": {"control"},
    "ending": set(),
    "steering": COMMON | {"control", "frontends", "handover", "logs", "preloading", "stack"},
    "catalogs": COMMON | {"iso"},
    "isofile": COMMON | {"iso"},
    "extraction": COMMON | {"iso", "isofile"},
    "preloading": COMMON | {"stack", "catalogs", "formats", "iso", "prefetch"},
    "unmount": COMMON | {"frontends", "leftovers"},
    "loopmount": COMMON | {"frontends", "mount", "leftovers"},
    "leftovers": COMMON | {"frontends"},
    "handover": COMMON | {"frontends"},
    "mounts": set(),
    "programs": {"errors"},
    "demo": COMMON | {"mount", "stack", "frontends", "iso"},
    "mount": DAEMON | {"handover", "catalogs", "iso", "isofile", "sources.urls"},
    "serve": DAEMON,
    "daemon": COMMON | {"stack", "logs", "background", "storagedaemon", "ending"},
    "stack": COMMON | {"formats", "iso", "prefetch", "cache", "sources"},
    "frontends": COMMON,
    "formats": COMMON,
    "iso": COMMON,
    "prefetch": COMMON,
    "cache": COMMON,
    "sources": COMMON,
    "protocols": {"errors"},
    "logs": {"options", "errors", "texts"},
    "background": set(),
    "options": {"errors"},
    "testing": COMMON,
    "device": set(),
    "errors": set(),
    "ranges": set(),
    "filelocks": set(),
    "wholefiles": set(),
    "headers": {"errors"},
    "texts": set(),
    "view": {"device"},
}

PURE = (
    "headers.py",
    "ranges.py",
    "options.py",
    "cache/bitmap.py",
    "cache/clock.py",
    "cache/counts.py",
    "cache/fill.py",
    "cache/plan.py",
    "cache/retry.py",
    "testing/damage.py",
    "cache/state.py",
    "protocols/control.py",
    "protocols/nbd.py",
    "protocols/nbdclient.py",
    "protocols/nbdnetlink.py",
    "protocols/nbdserver.py",
    "sources/http1.py",
    "sources/httprange.py",
    "sources/link.py",
    "sources/pace.py",
    "sources/urls.py",
    "sources/zeros.py",
    "prefetch/readahead.py",
    "prefetch/covered.py",
    "prefetch/profile.py",
    "prefetch/preload.py",
    "formats/squashfs.py",
    "formats/detect.py",
    "iso/builder.py",
    "iso/records.py",
    "iso/rockridge.py",
    "iso/saved.py",
    "iso/tree.py",
    "iso/udf.py",
    "iso/volume.py",
)
IMPURE_MODULES = {"trio", "httpx", "pyfuse3", "os", "time", "socket", "random", "logging"}

# Foreign packages that these files alone may import, wherever in them.
OWNERS = {
    "httpx": ("sources/http.py",),
    "pyfuse3": ("frontends/fuse.py", "frontends/fuseimages.py", "frontends/fusetree.py"),
    "pycdlib": ("iso/writer.py",),
    "prometheus_client": ("metrics.py",),
}

FILES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py"))


def at_module_level(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes that run on import: everything but the bodies of functions."""
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield node
            yield from at_module_level(node)


def imports(file: str, *, everywhere: bool = False) -> set[str]:
    """The modules that a file imports, in full: ``lazyfs.sources.urls``.

    What ``from x import y`` names is a module where there is such a file, else a part of ``x``.
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


def part_of(file: str) -> str:
    """``cache`` for ``cache/plan.py``, ``stack`` for ``stack.py``, ``lazyfs`` for the package."""
    return "lazyfs" if file == "__init__.py" else file.split("/")[0].removesuffix(".py")


def allowed(module: str, part: str) -> bool:
    name = module.removeprefix("lazyfs.")
    top = name.split(".")[0]
    return top == part or bool({name, top} & MAY_IMPORT[part])


@pytest.mark.parametrize("file", FILES)
def test_imports_follow_the_table(file: str) -> None:
    part = part_of(file)
    ours = {m for m in imports(file) if m == "lazyfs" or m.startswith("lazyfs.")}
    assert {module for module in ours if not allowed(module, part)} == set()


def test_the_table_names_no_part_twice_and_the_check_sees_breaches() -> None:
    assert {part_of(file) for file in FILES} <= set(MAY_IMPORT)
    assert not allowed("lazyfs.cache.plan", "sources")
    assert not allowed("lazyfs.sources.http", "cli")
    assert not allowed("lazyfs.mount", "frontends")
    assert allowed("lazyfs.sources.urls", "cli")
    assert "lazyfs.cache.plan" in imports("cache/blockcache.py")
    assert "lazyfs.sources.urls" in imports("sources/http.py")


@pytest.mark.parametrize("file", PURE)
def test_pure_modules_import_nothing_that_acts(file: str) -> None:
    assert {m for m in imports(file, everywhere=True) if m.split(".")[0] in IMPURE_MODULES} == set()


@pytest.mark.parametrize("file", PURE)
def test_pure_modules_import_only_pure_modules_of_ours(file: str) -> None:
    ours = {m for m in imports(file, everywhere=True) if m.startswith("lazyfs.")}
    files = {m.removeprefix("lazyfs.").replace(".", "/") + ".py" for m in ours}
    assert files <= {*PURE, "device.py", "errors.py"}


@pytest.mark.parametrize(("package", "owners"), OWNERS.items())
def test_a_package_and_who_may_use_it(package: str, owners: tuple[str, ...]) -> None:
    users = {f for f in FILES if package in {m.split(".")[0] for m in imports(f, everywhere=True)}}
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
        "from lazyfs.cli import main\n"
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
