#!/bin/sh
# dracut's root handler for lazyfs: lazyfsroot INTERFACE lazyfs:URL NEWROOT.
#
# It opens the image, and passes it to dmsquash-live like a local disk or file: an ISO image with
# LiveOS/squashfs.img in it, or a bare squashfs.

type getarg >/dev/null 2>&1 || . /lib/dracut-lib.sh

PATH=/usr/sbin:/usr/bin:/sbin:/bin
OPENED=/run/lazyfs.opened

main() {
    [ ! -e "$OPENED" ] || return 0 # called again for a second interface
    image=$(/usr/lib/lazyfs/lazyfs-boot open "$1") || fail "$(cat /run/lazyfs.reason)"
    : >"$OPENED"
    make_device
    /sbin/dmsquash-live-root "$image" || exit
    # dracut 059 makes these only after sysroot.mount, which needs them.
    for directory in /run/overlayfs /run/ovlwork; do
        [ -e "$directory" ] || mkdir -m 755 "$directory"
    done
}

# dmsquash-live accepts files, but not an ISO image as a file.
make_device() {
    [ ! -b "$image" ] && [ "$(blkid -p -s TYPE -o value "$image")" = iso9660 ] || return 0
    modprobe -q loop
    image=$(losetup -f --show -r --direct-io=on "$image") ||
        fail 'lazyfs: there is no loop device for the image'
}

# Start a shell, with the reason; dracut's die would halt the machine.
fail() {
    emergency_shell -n lazyfs "$1"
    exit 1
}

main "${2#lazyfs:}"
