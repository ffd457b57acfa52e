#!/bin/bash
# root=live:lazyfs:URL: a live system with its image on a web server.

# called by dracut
check() {
    # Like dmsquash-live: not in a host-only initramfs, and only on request.
    [[ $hostonly ]] && return 1
    [[ -x /usr/lib/lazyfs/lazyfs-boot ]] || return 1
    return 255
}

# called by dracut
depends() {
    # These two call root handlers; systemd-networkd (dracut 059) calls none.
    if [[ -x /usr/libexec/nm-initrd-generator || -x /usr/lib/nm-initrd-generator ]]; then
        echo -n 'network-manager '
    else
        echo -n 'network-legacy '
    fi
    echo network dmsquash-live
}

# called by dracut
installkernel() {
    instmods fuse nbd loop squashfs isofs overlay ext4
}

# called by dracut
install() {
    local library=/usr/lib/lazyfs
    inst_multiple cat chroot cp df du ln mkdir mount rm sleep umount unshare blkid grep losetup \
        modprobe sed
    inst_script $library/lazyfs-boot
    inst_script $library/lazyfs-generator
    "$($library/lazyfs-boot python)" -I $library/lazyfs-runtime "$initdir$library/runtime"

    # Before livenet and dmsquash-live, which must not mistake the URL for a file.
    inst_hook cmdline 28 "$moddir/parse-lazyfs.sh"
    inst_script "$moddir/lazyfs-root.sh" /sbin/lazyfsroot
    if dracut_module_included systemd-initrd; then
        inst_script "$moddir/sysroot-generator.sh" \
            "$systemdutildir/system-generators/dracut-lazyfs-generator"
    fi
    dracut_need_initqueue
}
