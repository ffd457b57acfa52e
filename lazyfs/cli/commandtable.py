"""The commands of lazyfs, by purpose, in the order of the help. Pure."""

GROUPS = {
    "use an image": {
        "mount": "show images as files in a directory (the default)",
        "loop": "mount the filesystem that is in an image",
        "attach": "show an image as a block device",
        "serve": "serve images to NBD clients",
        "umount": "unmount what lazyfs mounted",
        "detach": "detach what attach attached",
    },
    "look into an image": {
        "info": "show what an image is, and what its server can do",
        "ls": "show what is in an ISO image",
        "cat": "write files of an ISO image to stdout",
        "cp": "copy files out of an ISO image",
    },
    "see what runs": {
        "status": "show what runs, and how it is doing",
        "top": "watch a daemon at work",
        "map": "show which parts of an image are here",
        "metrics": "print metrics of what runs, for Prometheus",
    },
    "steer what runs": {
        "fill": "fetch all the rest of a mounted image",
        "pause": "fetch nothing that nobody waits for",
        "resume": "go on with what was paused",
        "rate": "limit how fast the rest is fetched",
        "preload": "fetch parts of an image before the rest",
        "handover": "move loop devices to the copy in the cache",
        "reload": "read logins again",
        "stop": "end a daemon, unless it is in use",
    },
    "look after things": {
        "cache": "look at what is cached, verify it, clean up",
        "config": "show what the configuration files say",
        "profile": "look at profiles, and make one of several",
    },
    "learn": {
        "demo": "a tour with no network at all",
        "help": "show the help of a command",
    },
}
COMMANDS = {name: what for group in GROUPS.values() for name, what in group.items()}
