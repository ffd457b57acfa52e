"""Runs in the guest: reads a device at random places, and compares with the original file.

    reader.py DEVICE FILE STOP        until the file STOP exists

Each read goes to the device, past the page cache (O_DIRECT). STOP.reads contains the number of
completed reads. At the end it prints one JSON object: ``reads``; ``failed`` (errnos); ``wrong``
(offsets); ``longest`` (seconds).
"""

import json
import mmap
import os
import random
import sys
import threading
import time
from dataclasses import asdict, dataclass, field

LENGTH = 16 << 10
READERS = 4


@dataclass
class Found:
    reads: int = 0
    failed: list[int] = field(default_factory=list)
    wrong: list[int] = field(default_factory=list)
    longest: float = 0.0


def read_on(device: str, file: str, stop: str, found: Found, seed: int) -> None:
    places = random.Random(seed)
    ours = os.open(device, os.O_RDONLY | os.O_DIRECT)
    right = os.open(file, os.O_RDONLY)
    end = os.lseek(ours, 0, os.SEEK_END)
    buffer = mmap.mmap(-1, LENGTH)  # O_DIRECT needs page alignment
    while not os.path.exists(stop):
        offset = places.randrange(0, end - LENGTH) & ~4095
        started = time.monotonic()
        try:
            length = os.preadv(ours, [buffer], offset)
        except OSError as error:
            found.failed.append(error.errno or 0)
            continue
        found.reads += 1
        found.longest = max(found.longest, time.monotonic() - started)
        if buffer[:length] != os.pread(right, LENGTH, offset)[:length] or length < LENGTH:
            found.wrong.append(offset)


def write(path: str, text: str) -> None:
    """Write a file atomically."""
    with open(f"{path}.new", "w") as file:
        file.write(text)
    os.replace(f"{path}.new", path)


def main(device: str, file: str, stop: str) -> None:
    found = Found()
    threads = [
        threading.Thread(target=read_on, args=(device, file, stop, found, seed))
        for seed in range(READERS)
    ]
    for thread in threads:
        thread.start()
    while not os.path.exists(stop):
        time.sleep(0.1)
        write(f"{stop}.reads", f"{found.reads}")
    for thread in threads:
        thread.join()
    print(json.dumps(asdict(found)))


if __name__ == "__main__":
    main(*sys.argv[1:])
