#!/bin/sh
# root=live:lazyfs:URL. When the network is up, dracut calls lazyfsroot with lazyfs:URL.
#
# Sourced, with the shell variables of dracut-cmdline. Errors start emergency_shell, since die would
# halt the machine.

[ -z "$root" ] && root=$(getarg root=)

case $root in
    live:lazyfs:*://?*)
        /usr/lib/lazyfs/lazyfs-boot check
        [ $? != 2 ] || emergency_shell -n lazyfs "$(cat /run/lazyfs.reason)"
        netroot=${root#live:}
        root=lazyfs # dracut requires a value here
        rootok=1
        wait_for_dev -n /dev/root
        ;;
    live:lazyfs:*)
        emergency_shell -n lazyfs "root=$root needs a URL, like root=live:lazyfs:http://server/x.iso"
        ;;
esac
