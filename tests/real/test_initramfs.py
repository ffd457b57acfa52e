"""What goes into an initrd: the runtime tree, its list, the launcher's parameters, the Makefile."""

import subprocess
import sys
from importlib.machinery import FrozenImporter
from pathlib import Path

import pytest

from .mounts import IS_ROOT, need_tool, run, run_well
from .servers import Scripted

SCRIPTS = Path(__file__).parents[2] / "contrib/initramfs"
LAUNCHER = SCRIPTS / "lazyfs-boot"
URL = "http://server/live.iso"
LIMIT = 240.0  # seconds

# In a mount namespace of its own, as the launcher does it: $0 is the tree, $1 the URL.
_IN_TREE = """
for name in dev proc sys; do mkdir "$0/$name"; mount --rbind /$name "$0/$name"; done
mkdir "$0/mnt" "$0/cache"
chroot "$0" /usr/bin/python3 -I -S -B -m lazyfs --cache-dir /cache --log-file /log "$1" /mnt
cat "$0"/mnt/*
umount "$0/mnt"
"""

needs_root = pytest.mark.skipif(not IS_ROOT, reason="only root can chroot and mount there")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runtime tree for the Python of these tests."""
    tree = tmp_path_factory.mktemp("initramfs") / "runtime"
    tree.mkdir()
    run_well([sys.executable, SCRIPTS / "lazyfs-runtime", tree], LIMIT)
    return tree


@needs_root
def test_the_list_is_what_a_real_run_imports(tree: Path) -> None:
    """Of lazyfs exactly; what it stands on differs a little from version to version."""
    traced = run_well([sys.executable, SCRIPTS / "trace"], LIMIT).split()
    listed = (SCRIPTS / "runtime.list").read_text().split()
    anew = "make it anew: contrib/initramfs/trace >contrib/initramfs/runtime.list"
    assert _of_lazyfs(listed) == _of_lazyfs(traced), anew
    assert [name for name in traced if not _is_in(tree, name)] == [], anew


def _of_lazyfs(names: list[str]) -> list[str]:
    return [name for name in names if name.split(".")[0] == "lazyfs"]


def _is_in(tree: Path, name: str) -> bool:
    if FrozenImporter.find_spec(name) is not None:  # in the interpreter itself
        return True
    (library,) = tree.glob("usr/lib/python3.*")
    place = library / name.replace(".", "/")
    files = (*place.glob("__init__.*"), *place.parent.glob(f"{place.name}.*"))
    return bool(files) or bool(list(library.glob(f"lib-dynload/{name}.*.so")))


@needs_root
def test_lazyfs_mounts_an_image_with_nothing_but_the_tree(tree: Path) -> None:
    content = bytes(range(256)) * 1000
    with Scripted(image=content) as server:
        command = ["unshare", "--mount", "sh", "-ec", _IN_TREE, tree, server.url("image")]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=LIMIT
        )
    assert done.stderr == b""
    assert done.stdout == content


def test_the_tree_has_compiled_code_only(tree: Path) -> None:
    assert not list(tree.rglob("*.py"))
    assert (tree / "usr/lib/libc.so.6").exists()


def test_the_tree_is_small(tree: Path) -> None:
    zstd = need_tool("zstd", "zstd")
    script = 'tar -C "$0" -cf - . | "$1" -q -9 -c | wc -c'
    assert int(run_well(["sh", "-c", script, tree, zstd], LIMIT)) <= 9_000_000


class Machine:
    """What the launcher sees of a machine."""

    def __init__(self, root: Path, words: str) -> None:
        self._root = root
        for name in ("proc", "run", "dev", "etc/default"):
            (root / name).mkdir(parents=True)
        (root / "proc/cmdline").write_text(f"BOOT_IMAGE=/vmlinuz boot=live quiet {words}\n")

    def boot(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        path = f"{self._root}/bin:/usr/bin:/bin"
        env = {"PATH": path, "LAZYFS_BOOT_ROOT": str(self._root)}
        return run([*self.shell, LAUNCHER, *arguments], env=env)

    shell: tuple[str, ...] = ("sh",)

    def splash(self) -> Path:
        """Have a plymouth that notes what it is to show, in this file."""
        noted = self._root / "shown"
        program = self._root / "bin/plymouth"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\necho "$*" >>{noted}\n')
        program.chmod(0o755)
        return noted

    def reason(self) -> str:
        return (self._root / "run/lazyfs.reason").read_text().strip()

    def console(self) -> str:
        return (self._root / "dev/console").read_text().strip()


@pytest.mark.parametrize(
    "words",
    [
        "",
        "lazyfs.timeout=0 lazyfs.frontend=nbd lazyfs.fill lazyfs.insecure lazyfs.debug",
        "lazyfs.cache=tmpfs lazyfs.fill=10M/s lazyfs.record lazyfs.quiet",
        "lazyfs.cache=tmpfs:512M lazyfs.profile=auto lazyfs.proxy=http://proxy:3128",
        "lazyfs.cache=LABEL=scratch",
        "lazyfs.cache=UUID=0123-4567",
        "lazyfs.cache=/dev/vda1",
        "other.lazyfs.x=1 lazyfsx=2",
    ],
)
@pytest.mark.parametrize("shell", [("sh",), ("busybox", "sh"), ("bash", "--posix")])
def test_right_parameters_are_taken(tmp_path: Path, words: str, shell: tuple[str, ...]) -> None:
    if shell[0] == "busybox":
        need_tool("busybox", "busybox-static")
    machine = Machine(tmp_path, f"lazyfs={URL}?a=b {words}")
    machine.shell = shell
    assert machine.boot("check").returncode == 0
    assert machine.boot("url").stdout == f"{URL}?a=b\n"


def test_a_boot_without_lazyfs_is_none_of_its_business(tmp_path: Path) -> None:
    done = Machine(tmp_path, "lazyfs.timeout=5").boot("check")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("lazyfs=", "lazyfs= needs a URL"),
        ("lazyfs", "lazyfs= needs a URL"),
        ("lazyfs=live.iso", "lazyfs= needs a URL"),
        ("lazyfs.cahce=tmpfs", "there are: lazyfs= lazyfs.cache= lazyfs.debug"),
        (
            "lazyfs.cache=memory",
            "lazyfs.cache= is tmpfs, tmpfs:SIZE, LABEL=..., UUID=... or",
        ),
        ("lazyfs.cache=tmpfs:lots", "lazyfs.cache= is"),
        ("lazyfs.cache=tmpfs:", "lazyfs.cache= is"),
        ("lazyfs.timeout=5s", "lazyfs.timeout= is a number of seconds"),
        ("lazyfs.fill=fast", "lazyfs.fill= is a rate"),
        ("lazyfs.fill=", "lazyfs.fill= is a rate"),
        ("lazyfs.profile=http://x", "lazyfs.profile= can only be auto"),
        ("lazyfs.frontend=nbdkit", "lazyfs.frontend= is fuse or nbd"),
        ("lazyfs.insecure=1", "lazyfs.insecure takes no value"),
        ("lazyfs.proxy=", "lazyfs.proxy= needs a URL"),
        ("lazyfs.*", "there are:"),
    ],
)
def test_a_wrong_parameter_is_named_with_what_would_be_right(
    tmp_path: Path, word: str, says: str
) -> None:
    machine = Machine(tmp_path, f"lazyfs={URL} {word}")
    assert machine.boot("check").returncode == 2
    reason = machine.reason()
    assert reason.startswith(f"kernel parameter '{word}' is wrong; ")
    assert says in reason
    assert machine.console() == reason
    assert "\n" not in reason


def test_what_is_said_on_the_console_is_said_in_the_splash_too(tmp_path: Path) -> None:
    machine = Machine(tmp_path, f"lazyfs={URL} lazyfs.fill=fast")
    shown = machine.splash()
    assert machine.boot("check").returncode == 2
    assert shown.read_text() == f"--ping\ndisplay-message --text={machine.reason()}\n"


def test_the_python_of_lazyfs_is_found_in_a_virtual_environment(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "")
    command = tmp_path / "venv/bin/lazyfs"
    command.parent.mkdir(parents=True)
    command.write_text("#!/opt/venv/bin/python3.13 -I\n")
    command.chmod(0o755)
    settings = tmp_path / "etc/default/lazyfs-initramfs"
    settings.write_text(f"LAZYFS={command}\n")
    assert machine.boot("python").stdout == "/opt/venv/bin/python3.13\n"
    settings.write_text("LAZYFS=/nowhere\n")
    done = machine.boot("python")
    assert (done.returncode, done.stdout) == (1, "")
    assert "lazyfs is not installed" in done.stderr


@needs_root
def test_systemd_is_told_to_keep_the_network(tmp_path: Path) -> None:
    run_well([SCRIPTS / "lazyfs-generator", tmp_path, tmp_path, tmp_path])
    killed = "KillSignal=SIGKILL\nSuccessExitStatus=SIGKILL\n"
    extended = {
        "networking.service": f"ExecStop=\n{killed}",
        "ifup@.service": f"ExecStop=\n{killed}",
        "NetworkManager.service": killed,
        "systemd-networkd.service": f"{_KEEP}\n{killed}",
    }
    for unit, lines in extended.items():
        assert (tmp_path / f"{unit}.d/lazyfs.conf").read_text() == f"[Service]\n{lines}"
    wanted = {path.name for path in (tmp_path / "multi-user.target.wants").iterdir()}
    assert wanted == {"lazyfs-names.path", "lazyfs-shutdown.service"}
    units = [tmp_path / "lazyfs-names.path", *tmp_path.glob("*.service")]
    run_well([need_tool("systemd-analyze", "systemd"), "verify", "--man=no", *units])


_KEEP = "ExecStartPre=+/bin/sh /run/lazyfs/lazyfs-generator keep-networks"
_KEEP_NETWORKS = """
mount -t tmpfs run /run
mkdir -p /run/systemd/network
touch /run/systemd/network/10-lan.network
"$0" keep-networks
cat /run/systemd/network/10-lan.network.d/lazyfs.conf
"""


@needs_root
def test_networkd_keeps_what_was_there_when_it_starts() -> None:
    generator = SCRIPTS / "lazyfs-generator"
    kept = run_well(["unshare", "--mount", "sh", "-ec", _KEEP_NETWORKS, generator])
    assert kept == "[Network]\nKeepConfiguration=yes\n"


def test_uninstall_takes_away_what_install_brought(tmp_path: Path) -> None:
    make = ["make", "-s", "-C", SCRIPTS, f"DESTDIR={tmp_path}"]
    run_well([*make, "install"])
    installed = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert {"usr/lib/lazyfs/lazyfs-boot", "usr/share/initramfs-tools/hooks/lazyfs"} <= installed
    run_well([*make, "uninstall"])
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
