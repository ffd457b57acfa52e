"""The pages of docs/ do what stands in them, and make a site without a warning.

All blocks of commands of a page are run in their order in one shell; see blocks.py.
"""

import importlib.util
import shutil
import sys
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest
from docutils import nodes

from lazyfs.cli.commandtable import COMMANDS
from lazyfs.cli.parser import parser_of
from lazyfs.daemon import metrics

from .blocks import (
    ROOT,
    Block,
    Done,
    Machine,
    blocks_of,
    console_blocks,
    plant_host,
    reason_not_to_run,
    tree_of,
)
from .mounts import IS_ROOT, need_loop, need_tool, run
from .servers import Certificates, Nginx, Scripted, free_port

DOCS = ROOT / "docs"
FLEET, PROXY = DOCS / "howto/fleet.rst", DOCS / "howto/proxy.rst"
# Pages about what has tests of its own: a server that goes away, other programs.
OF_THEIR_OWN = ("semantics.rst", "comparison.rst")
PAGES = sorted(
    page
    for page in [*DOCS.glob("*.rst"), *DOCS.glob("*/*.rst")]
    if page.name not in OF_THEIR_OWN and not page.name.startswith("liveboot")
)
WITH_BLOCKS = [page for page in PAGES if page not in (FLEET, PROXY) and blocks_of(page)]

TOOLS = {"getfattr": "attr", "nbdinfo": "libnbd-bin", "qemu-img": "qemu-utils"}

# Options of other programs: docker, cp and du; and one that stands for any.
OF_OTHERS = {"--device", "--sparse", "--apparent-size", "--like-this"}

LOGIN = "Basic " + b64encode(b"joe:sesame").decode()
TOKEN = "Bearer 0815"


def name_of(page: Path) -> str:
    return page.relative_to(DOCS).as_posix()


class Site(Nginx):
    """nginx, with more that stands in its ``http`` block."""

    def __init__(self, root: Path, more: str) -> None:
        super().__init__(root)
        self._more = more

    def configure(self, text: str) -> str:
        return super().configure(text.replace("sendfile on;", f"sendfile on;\n{self._more}"))


# What documents find on the network


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What https://host/ serves."""
    return plant_host(tmp_path_factory.mktemp("host"))


@pytest.fixture(scope="module")
def host(root: Path) -> Iterator[Nginx]:
    with Nginx(root) as server:
        yield server


@pytest.fixture(scope="module")
def private(root: Path) -> Iterator[str]:
    """The URL of the same files, for who has the login or the token."""
    port = free_port()
    server = f"""
        map "$http_authorization" $known {{ "{LOGIN}" 1; "{TOKEN}" 1; default 0; }}
        server {{
            listen 127.0.0.1:{port};
            root {root};
            if ($known = 0) {{ return 401; }}
        }}
    """
    with Site(root, server):
        yield f"http://127.0.0.1:{port}/"


@pytest.fixture(scope="module")
def proxy(root: Path) -> Iterator[Site]:
    """A proxy; its access log is the one of ``Site``."""
    port = free_port()
    server = f"""
        server {{
            listen 127.0.0.1:{port};
            location / {{ proxy_pass http://$http_host$request_uri; }}
        }}
    """
    with Site(root, server) as site:
        site.port = port
        yield site


@pytest.fixture(scope="module")
def cache(root: Path, host: Nginx, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of the cache that docs/howto/fleet.rst sets up, in front of the host."""
    port, place = free_port(), tmp_path_factory.mktemp("cache")
    (written,) = (b for b in tree_of(FLEET).findall(nodes.literal_block) if "nginx" in b["classes"])
    server = written.astext()
    for there, here in {
        "https://host": host.url("").rstrip("/"),
        "listen 8080": f"listen 127.0.0.1:{port}",
        "/var/cache/nginx/images": str(place),
    }.items():
        assert there in server
        server = server.replace(there, here)
    with Site(root, server):
        yield f"http://127.0.0.1:{port}/"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def intranet(root: Path, certificates: Certificates) -> Iterator[Scripted]:
    """A server with a certificate that nobody has signed."""
    server = Scripted(**{"disk.raw": (root / "disk.raw").read_bytes()})
    server.tls = certificates.server()
    with server:
        yield server


@pytest.fixture
def machine(
    tmp_path: Path,
    host: Nginx,
    private: str,
    proxy: Site,
    cache: str,
    intranet: Scripted,
    certificates: Certificates,
) -> Iterator[Machine]:
    login = private.replace("://", "://joe:sesame@")
    machine = Machine(
        tmp_path,
        {
            "https://host/": host.url(""),
            "https://host/private/": private,
            "https://joe:sesame@host/private/": login,
            "http://cache:8080/": cache,
            "https://intranet/": intranet.url(""),
            "http://proxy:3128": proxy.url("").rstrip("/"),
            "10809": str(free_port()),
            "machine host ": "machine 127.0.0.1 ",
        },
    )
    shutil.copy(certificates.file, machine.cwd / "authority.pem")
    try:
        yield machine
    finally:
        machine.clean_up()


# Commands


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_block_that_is_not_run_says_why(page: Path) -> None:
    for block in console_blocks(page):
        commands = block.astext().startswith("$ ")
        assert commands or "guest" in block["classes"] or reason_not_to_run(block), block.astext()


@pytest.mark.parametrize("page", WITH_BLOCKS, ids=name_of)
def test_the_commands_of_a_page_do_what_stands_there(machine: Machine, page: Path) -> None:
    run_well(machine, blocks_of(page))


def test_a_fleet_asks_its_cache_and_the_cache_asks_the_server_once(
    machine: Machine, host: Nginx
) -> None:
    first, second = blocks_of(FLEET)
    before = host.request_count()
    run_well(machine, [first])
    after = host.request_count()
    assert after > before
    run_well(machine, [second])
    assert host.request_count() == after


def test_what_goes_through_a_proxy_goes_through_it(
    machine: Machine, host: Nginx, proxy: Site
) -> None:
    before = host.request_count()
    run_well(machine, blocks_of(PROXY))
    assert proxy.request_count() == host.request_count() - before > 0


def run_well(machine: Machine, blocks: list[Block]) -> None:
    """Run these blocks in one shell; each has to do what stands there."""
    if not IS_ROOT:
        pytest.skip("the commands are for root: mount and umount need it")
    need_loop()
    for tool, package in TOOLS.items():
        need_tool(tool, package)
    done = iter(machine.run_each([command for block in blocks for command in block.commands]))
    wrong = [line for block in blocks for line in differences(block, done)]
    assert wrong == [], "\n".join(wrong)
    machine.check_that_nothing_is_left()


def differences(block: Block, done: Iterator[Done]) -> Iterator[str]:
    """The steps of a block that did something else, with what they did."""
    for step, found in zip(block.steps, done, strict=False):
        if step.prints(found.output) if block.shows_output else found.status == 0:
            continue
        yield f"$ {step.command}\n{found.output}(status {found.status})"


# Words of the prose


@pytest.mark.parametrize("page", [p for p in PAGES if p.name != "design.rst"], ids=name_of)
def test_options_that_a_page_names_exist(page: Path) -> None:
    """The design speaks of options, too, that were not made."""
    words = [node.astext().split()[0] for node in tree_of(page).findall(nodes.literal)]
    named = {word.partition("=")[0] for word in words if word.startswith("--")}
    assert named - options() - OF_OTHERS == set()


def options() -> set[str]:
    """Those of all commands, and of the commands within these."""
    parsers = [parser_of(command) for command in COMMANDS]
    within = [inner for parser in parsers for inner in parser.commands().values()]
    return {option for parser in parsers + within for option in parser.options()}


def test_the_page_about_metrics_has_those_that_there_are() -> None:
    rows = tree_of(DOCS / "reference/metrics.rst").findall(nodes.row)
    written = [tuple(entry.astext() for entry in row) for row in rows]
    gauges = [(f"lazyfs_{metric.name}", metric.text) for metric in metrics._GAUGES]
    counters = [(f"lazyfs_{metric.name}_total", metric.text) for metric in metrics._COUNTERS]
    assert written == gauges + counters


# The site


def test_the_site_is_made_without_a_warning(tmp_path: Path) -> None:
    if importlib.util.find_spec("sphinx") is None:
        pytest.skip("Sphinx is not installed (pip install 'lazyfs[docs]')")
    options = ["-W", "--keep-going", "-q"]
    done = run([sys.executable, "-m", "sphinx", *options, DOCS, tmp_path / "site"])
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    page = (tmp_path / "site/tutorial.html").read_text()
    assert 'href="semantics.html"' in page, "links to other pages are links of the site"
