#!/bin/sh
# Have sysroot.mount written by the generator of dmsquash-live. It only knows devices and local
# files, but writes the same unit for all of them.

type getarg >/dev/null 2>&1 || . /lib/dracut-lib.sh

case $(getarg root=) in
    live:lazyfs:*) root=live:/dev/lazyfs exec "${0%/*}/dracut-dmsquash-generator" "$@" ;;
esac
