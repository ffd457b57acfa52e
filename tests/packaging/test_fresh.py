"""From a Debian on which nothing was done yet to a mounted image."""

from machines import Machine, Release
from packages import copy_tree
from real.images import Images, digest_of
from real.servers import Nginx


def test_lintian_finds_neither_errors_nor_warnings(workshop: Machine) -> None:
    workshop.install("lintian")
    workshop.do("lintian --allow-root --fail-on error,warning /work/*.changes")


def test_what_the_release_has_is_not_carried_along(release: Release, workshop: Machine) -> None:
    lazyfs, _ = workshop.built()
    assert lazyfs.field("Version").endswith(f"~deb{release.number}")
    if release.number >= 13:
        assert lazyfs.bundled == set()


def test_with_the_package_alone(
    release: Release,
    workshop: Machine,
    machine: Machine,
    images: Images,
    nginx: Nginx,
    report: list[str],
) -> None:
    image = images.squashfs()
    bring_packages(workshop, machine)
    machine.install("/lazyfs_*.deb")
    said = machine.do(f"""
        mkdir /image
        mount -t fuse.lazyfs {nginx.url(image.name)} /image -o ro
        stat --format %s /image/{image.name}
        umount /image
        mount -t lazyfs {nginx.url(image.name)} /image
        umount /image
    """)
    report.append(f"{release}, by the package: {machine.so_far()}")
    assert said == f"{image.stat().st_size}\n"
    said = machine.do(f"""
        lazyfs {nginx.url(image.name)} /image
        sha256sum /image/{image.name}
        lazyfs umount /image
    """)
    assert said == f"{digest_of(image)}  /image/{image.name}\n"


def test_nothing_stays_when_the_package_goes(workshop: Machine, machine: Machine) -> None:
    before = machine.files()
    bring_packages(workshop, machine)
    machine.install("/lazyfs_*.deb", "/lazyfs-initramfs_*.deb")
    machine.do("lazyfs --version && apt-get purge --yes lazyfs")
    left = {name for name in machine.files() - before if not name.endswith(".deb")}
    assert {name for name in left if "lazyfs" in name} == set()


def test_with_what_the_readme_says(
    release: Release, machine: Machine, images: Images, nginx: Nginx, report: list[str]
) -> None:
    image = images.squashfs()
    copy_tree(machine.root / "lazyfs")
    machine.install("git", "make", "python3")
    shown = machine.do("cd /lazyfs && make demo")
    report.append(f"{release}, by make demo: {machine.so_far()}")
    assert "cleaned up: nothing is left behind" in shown
    said = machine.do(f"""
        mkdir /image
        /lazyfs/.venv/bin/lazyfs {nginx.url(image.name)} /image
        sha256sum /image/{image.name}
    """)
    assert said == f"{digest_of(image)}  /image/{image.name}\n"


def test_an_initrd_has_a_lazyfs_that_runs(workshop: Machine, machine: Machine) -> None:
    bring_packages(workshop, machine)
    machine.install("/lazyfs_*.deb", "/lazyfs-initramfs_*.deb", "initramfs-tools", "zstd")
    # A kernel without modules is one, too: mkinitramfs warns, and goes on.
    said = machine.do("""
        mkdir -p /lib/modules/0.0/kernel
        touch /lib/modules/0.0/modules.order /lib/modules/0.0/modules.builtin
        echo CONFIG_RD_ZSTD=y >/boot/config-0.0
        mkinitramfs -o /initrd 0.0
        unmkinitramfs /initrd /unpacked
        chroot /unpacked/usr/lib/lazyfs/runtime /usr/bin/python3 -I -S -B -m lazyfs --version
    """)
    assert "lazyfs 0." in said


def bring_packages(workshop: Machine, machine: Machine) -> None:
    for package in workshop.built():
        (machine.root / package.path.name).write_bytes(package.path.read_bytes())
