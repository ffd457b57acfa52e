# What the unit of the live system does: say what is seen, work, and power off.
#
# On the kernel command line: live.work, work first; live.filled, wait until all of the image is here;
# live.profile, show the profile that was recorded.
say() { echo "LIVE: $*"; }
uptime() { cut -d ' ' -f 1 /proc/uptime; }
asked() { grep -qw "$1" /proc/cmdline; }

say "marker at $(uptime) with $(sed -n 's/^MemAvailable: *\([0-9]*\) kB/\1/p' /proc/meminfo) kB"
if asked live.work; then
    say "works"
    python3 -c 'import json, ssl, sqlite3, email, xml.dom.minidom; print("LIVE: python", 6 * 7)'
    say "apt knows $(apt list --installed 2>/dev/null | wc -l) packages"
    sha256sum --quiet -c /opt/live/payload.sha256 && say "payload is right"
fi
if asked live.filled; then
    until grep -q 'is complete' /run/lazyfs/log; do sleep 1; done
    say "image is complete"
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
say "power off at $(uptime)"
systemctl --no-block poweroff
