#!/bin/sh
# Have sysroot.mount written by the generator of dmsquash-live, which knows devices and local files
# only: what it writes is the same for all of them.

type getarg >/dev/null 2>&1 || . /lib/dracut-lib.sh

case $(getarg root=) in
    live:lazyfs:*) root=live:/dev/lazyfs exec "${0%/*}/dracut-dmsquash-generator" "$@" ;;
esac
