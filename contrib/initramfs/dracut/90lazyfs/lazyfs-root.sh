#!/bin/sh
# The root handler of dracut for lazyfs: lazyfsroot INTERFACE lazyfs:URL NEWROOT.
#
# It opens the image, and leaves it to dmsquash-live as if it were a disk or a file of this machine:
# an ISO image with LiveOS/squashfs.img in it, or a squashfs alone.

type getarg >/dev/null 2>&1 || . /lib/dracut-lib.sh

PATH=/usr/sbin:/usr/bin:/sbin:/bin
OPENED=/run/lazyfs.opened

main() {
    [ ! -e "$OPENED" ] || return 0 # a second interface is up
    image=$(/usr/lib/lazyfs/lazyfs-boot open "$1") || fail "$(cat /run/lazyfs.reason)"
    : >"$OPENED"
    make_device
    /sbin/dmsquash-live-root "$image" || exit
    # dracut 059 makes them only after sysroot.mount, which needs them.
    for directory in /run/overlayfs /run/ovlwork; do
        [ -e "$directory" ] || mkdir -m 755 "$directory"
    done
}

# dmsquash-live takes files, but no ISO image that is one.
make_device() {
    [ ! -b "$image" ] && [ "$(blkid -p -s TYPE -o value "$image")" = iso9660 ] || return 0
    modprobe -q loop
    image=$(losetup -f --show -r --direct-io=on "$image") ||
        fail 'lazyfs: there is no loop device for the image'
}

# To a shell, with the reason; dracut's die would halt the machine.
fail() {
    emergency_shell -n lazyfs "$1"
    exit 1
}

main "${2#lazyfs:}"
