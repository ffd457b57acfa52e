# What the unit of the live system does: say what is seen, work, and power off.
#
# On the kernel command line: live.filled, first wait until all of the image is here, and do without
# the daemon from then on; live.network, first end all that has the network in its care; live.work,
# work; live.profile, show the profile that was recorded; live.alone, wait until the server is gone;
# live.reboot, start anew at the end.
exec >/dev/console 2>&1 # which nobody hangs up
say() { echo "LIVE: $*"; }
uptime() { cut -d ' ' -f 1 /proc/uptime; }
asked() { grep -qw "$1" /proc/cmdline; }
forget() { echo 3 >/proc/sys/vm/drop_caches; } # what of the image is in memory

say "marker at $(uptime) with $(sed -n 's/^MemAvailable: *\([0-9]*\) kB/\1/p' /proc/meminfo) kB"
if asked live.filled; then
    until grep -q 'now stands on the complete copy' /run/lazyfs/log; do sleep 1; done
    say "image is complete"
    kill -KILL "$(pgrep -f '^@lazyfs')" && forget && say "daemon is dead"
fi
if asked live.network; then
    say "networkd says: $(networkctl --no-legend list 2>&1 | grep ether)"
    say "NetworkManager says: $(nmcli -t device 2>&1 | grep ethernet)"
    systemctl stop systemd-networkd.socket networking.service systemd-networkd.service \
        NetworkManager.service
    forget
    say "network is in nobody's care"
fi
if asked live.work; then
    say "works"
    python3 -c 'import json, ssl, sqlite3, email, xml.dom.minidom; print("LIVE: python", 6 * 7)'
    say "apt knows $(apt list --installed 2>/dev/null | wc -l) packages"
    sha256sum --quiet -c /opt/live/payload.sha256 && say "payload is right"
fi
if asked live.profile; then
    until [ -s /run/lazyfs/profile ]; do sleep 1; done
    sleep 31 # until it is saved once more
    say "profile begins"
    cat /run/lazyfs/profile
    say "profile ends"
fi
systemctl --failed --no-legend
say "failed units: $(systemctl --failed --no-legend | wc -l)"
if asked live.alone; then
    while sleep 1 && systemctl --quiet is-active lazyfs-shutdown.service; do :; done
    say "can do without the server" # by now all programs that are used from here on have been read
    until grep -q retrying /run/lazyfs/log; do sleep 1; done
fi
say "power off at $(uptime)"
if asked live.reboot; then systemctl --no-block reboot; else systemctl --no-block poweroff; fi
