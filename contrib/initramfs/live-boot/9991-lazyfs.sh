#!/bin/sh
# live-boot: the parameter lazyfs=URL.
#
# live-boot handles it like httpfs=: it sets up the network and calls do_httpmount, which is
# replaced here. URL is an ISO image with live/*.squashfs in it, or a bare squashfs.

Lazyfs_parameters ()
{
	/usr/lib/lazyfs/lazyfs-boot check
	case "${?}" in
		0)
			HTTPFS="$(/usr/lib/lazyfs/lazyfs-boot url)"
			export HTTPFS
			Lazyfs_takes_over
			;;

		2)
			. /scripts/functions
			panic "$(cat /run/lazyfs.reason)"
			;;
	esac
}

Lazyfs_takes_over ()
{
	do_httpmount ()
	{
		image="$(/usr/lib/lazyfs/lazyfs-boot open)" || panic "$(cat /run/lazyfs.reason)"
		Lazyfs_mount "${image}" || panic "lazyfs: ${HTTPFS} is neither an ISO image nor a squashfs"
		NETBOOT="HTTPFS"
		export NETBOOT
	}
}

# A bare squashfs becomes a directory that live-boot uses as it is.
Lazyfs_mount ()
{
	device="${1}"
	[ -b "${device}" ] || device="$(losetup --find --show --read-only --direct-io=on "${1}")"

	case "$(blkid -p -o value -s TYPE "${device}")" in
		iso9660)
			mount -t iso9660 -o ro,noatime "${device}" "${mountpoint}"
			;;

		squashfs)
			mount -t tmpfs -o mode=755,size=1M lazyfs-medium "${mountpoint}" &&
			mkdir -p "${mountpoint}/${LIVE_MEDIA_PATH}/filesystem.dir" &&
			mount -t squashfs -o ro,noatime "${device}" "${mountpoint}/${LIVE_MEDIA_PATH}/filesystem.dir"
			;;

		*)
			return 1
			;;
	esac
}

Lazyfs_parameters
