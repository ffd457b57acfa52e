"""A real mount for a long time: many readers, a server that fails and restarts, a cache too small.

At the end nothing has piled up: memory and file descriptors are what they were at the beginning,
every read ended in time, and every byte that came was right.
"""

import os
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from real.images import MIB
from real.mounts import Lab
from real.servers import Request

from .direct import LONGEST, DirectReader, Original
from .figures import Figures
from .server import Fault, FaultServer
from .trouble import FAILURES, LIES

SIZE = 40 * MIB + 99
READERS = 6
TIMEOUT = 3.0  # seconds until a read fails
MARGIN = 4.0  # seconds by which a busy machine may be late
FAULTY = 0.03  # the share of requests that go wrong
SHORT_RUN, LONG_RUN = 20.0, 100.0  # seconds
MORE_MEMORY = 8 * MIB  # bytes that the last quarter may have more than the first
MORE_FILES = 4


@pytest.fixture
def original(tmp_path: Path) -> Original:
    path = tmp_path / "original"
    path.write_bytes(random.Random(3).randbytes(SIZE))
    return Original(path)


@pytest.fixture
def server(original: Original) -> Iterator[FaultServer]:
    with FaultServer(**{"image.raw": original.part(0, SIZE)}) as server:
        yield server


def test_nothing_piles_up(
    lab: Lab, original: Original, server: FaultServer, figures: Figures, long: bool
) -> None:
    options = ["--timeout", f"{TIMEOUT:g}", "--cache-size", "16M", server.url("image.raw")]
    end = time.monotonic() + (LONG_RUN if long else SHORT_RUN)
    with (
        lab.mounted(*options, troubled=True) as mounted,
        ThreadPoolExecutor(READERS) as pool,
    ):
        readers = [
            pool.submit(read_until, end, mounted.image, original, figures, seed)
            for seed in range(READERS)
        ]
        samples = list(make_trouble_until(end, server, mounted.pid, figures))
        longest = max(reader.result(60) for reader in readers)
        figures.add(faults_injected=server.faults)
        figures.most(longest_read_in_seconds=round(longest, 1))
        server.script = lambda _: None
        with DirectReader(mounted.image, original, figures) as reader:
            assert reads_well_again(reader), "it reads well when the server is well"
        assert not mounted.has_ended()
        log = mounted.messages()
    assert "unforeseen" not in log
    assert "Traceback" not in log
    assert longest <= TIMEOUT + MARGIN
    check_flat(samples, figures)


def read_until(end: float, image: Path, original: Original, figures: Figures, seed: int) -> float:
    """Read on and on, some here and there, some from start to end; returns the longest wait."""
    chance = random.Random(seed)
    position = 0
    with DirectReader(image, original, figures) as reader:
        while time.monotonic() < end:
            if seed % 2:
                position = (position + LONGEST) % SIZE // 4096 * 4096
            else:
                position = chance.randrange(SIZE // 4096) * 4096
            try:
                assert reader.read(position, LONGEST if seed % 2 else 4096), "wrong bytes"
            except OSError:
                figures.add(failed_reads=1)
    return reader.longest


def make_trouble_until(
    end: float, server: FaultServer, pid: int, figures: Figures
) -> Iterator[tuple[int, int]]:
    """Let some requests fail, and the server restart; meanwhile sample memory and open files."""
    chance = random.Random(0)
    lock = threading.Lock()

    def script(request: Request) -> Fault | None:
        with lock:
            return chance.choice((*LIES, *FAILURES)) if chance.random() < FAULTY else None

    server.script = script
    while time.monotonic() < end:
        yield resident(pid), len(os.listdir(f"/proc/{pid}/fd"))
        time.sleep(0.25)
        if chance.random() < 0.03:
            server.stop()
            time.sleep(chance.choice((0.0, 0.0, 1.0, 2 * TIMEOUT)))
            server.start()
            figures.add(outages=1)


def resident(pid: int) -> int:
    """Bytes of memory that a process holds (proc(5), statm)."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def reads_well_again(reader: DirectReader) -> bool:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        try:
            return reader.read(0, 4096) and reader.read(SIZE // 4096 * 4096, 4096)
        except OSError:
            continue
    return False


def check_flat(samples: list[tuple[int, int]], figures: Figures) -> None:
    """Neither memory nor open files have grown from the first quarter to the last."""
    quarter = len(samples) // 4
    first, last = samples[:quarter], samples[-quarter:]
    memory = [max(s[0] for s in first), min(s[0] for s in last)]
    files = [max(s[1] for s in first), min(s[1] for s in last)]
    figures.most(memory_at_first_in_MiB=memory[0] // MIB, memory_at_last_in_MiB=memory[1] // MIB)
    figures.most(files_at_first=files[0], files_at_last=files[1])
    assert memory[1] <= memory[0] + MORE_MEMORY
    assert files[1] <= files[0] + MORE_FILES
