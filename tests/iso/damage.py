"""Images that were damaged, or made by somebody who means harm."""

import binascii
import random
import struct
from collections.abc import Callable

from lazyfs.formats.iso.volume import SECTOR

# Values that programs trip over.
_EDGES = (0, 1, 2, 33, 34, 127, 128, 255, 256, 2047, 2048, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)


class Sound:
    """A sound image, and where its structures are."""

    def __init__(self, image: bytes) -> None:
        self.image = image
        starts = range(16 * SECTOR, len(image) - SECTOR + 1, SECTOR)
        self.udf = [at for at in starts if _is_udf(image, at)]
        self.records = _directory_records(image)
        self.directories = [at for at in self.records if image[at + 25] & 2]

    def damaged(self, rng: random.Random) -> bytes:
        """A copy, damaged in one to four ways."""
        copy = bytearray(self.image)
        for _ in range(rng.choice((1, 1, 2, 4))):
            rng.choice(_DAMAGES)(self, rng, copy)
        if rng.random() < 0.1:
            del copy[rng.randrange(len(copy)) :]
        return bytes(copy)


def sealed(block: bytearray) -> None:
    """Make the tag of a UDF structure true again: what is wrong in it then gets past the tests."""
    (length,) = struct.unpack_from("<H", block, 10)
    length = min(length, len(block) - 16)
    crc = binascii.crc_hqx(bytes(block[16 : 16 + length]), 0)
    struct.pack_into("<HH", block, 8, crc, length)
    block[4] = 0
    block[4] = sum(block[:16]) & 0xFF


def _flip_bits(sound: Sound, rng: random.Random, image: bytearray) -> None:
    for _ in range(rng.randint(1, 40)):
        image[rng.randrange(16 * SECTOR, len(image))] ^= 1 << rng.randrange(8)


def _flip_bits_of_descriptors(sound: Sound, rng: random.Random, image: bytearray) -> None:
    for _ in range(rng.randint(1, 8)):
        image[rng.randrange(16 * SECTOR, 24 * SECTOR)] ^= 1 << rng.randrange(8)


def _swap_sectors(sound: Sound, rng: random.Random, image: bytearray) -> None:
    one, other = (rng.randrange(16, len(image) // SECTOR) * SECTOR for _ in range(2))
    kept = image[one : one + SECTOR]
    image[one : one + SECTOR] = image[other : other + SECTOR]
    image[other : other + SECTOR] = kept


def _damage_records(sound: Sound, rng: random.Random, image: bytearray) -> None:
    """Change fields of directory records: their length, place, size, flags, name or system use."""
    for _ in range(rng.randint(1, 6) if sound.records else 0):
        place = rng.choice(sound.records)
        at, size = rng.choice(((0, 1), (1, 1), (2, 4), (10, 4), (25, 1), (26, 1), (32, 1)))
        _change(rng, image, place + at, size)


def _damage_system_use(sound: Sound, rng: random.Random, image: bytearray) -> None:
    """Change lengths and contents of the entries of Rock Ridge."""
    signature = rng.choice((b"NM", b"PX", b"TF", b"SL", b"CE", b"CL", b"RE", b"SP", b"ER", b"ZF"))
    place = image.find(signature, rng.randrange(16 * SECTOR, len(image)))
    for _ in range(rng.randint(1, 5)):
        if 0 <= place < len(image) - 32:
            at, size = rng.choice(((0, 2), (2, 1), (3, 1), (4, 1), (4, 4), (12, 4), (20, 4)))
            _change(rng, image, place + at, size)
            place = image.find(signature, place + 1)


def _tie_a_loop(sound: Sound, rng: random.Random, image: bytearray) -> None:
    """Let a directory be another one, perhaps one that holds it."""
    if sound.directories:
        one, other = rng.choice(sound.directories), rng.choice(sound.directories)
        image[one + 2 : one + 18] = image[other + 2 : other + 18]


def _damage_udf(sound: Sound, rng: random.Random, image: bytearray) -> None:
    """Change fields of UDF's structures, and make their checksums fit."""
    for _ in range(rng.randint(1, 6) if sound.udf else 0):
        at = rng.choice(sound.udf)
        block = image[at : at + SECTOR]
        _change(rng, block, rng.randrange(16, 500), rng.choice((1, 2, 4)))
        sealed(block)
        image[at : at + SECTOR] = block


_Damage = Callable[[Sound, random.Random, bytearray], None]
_DAMAGES: tuple[_Damage, ...] = (
    _flip_bits,
    _flip_bits_of_descriptors,
    _swap_sectors,
    _damage_records,
    _damage_system_use,
    _tie_a_loop,
    _damage_udf,
)


def _change(rng: random.Random, data: bytearray, at: int, size: int) -> None:
    """Give a number in ``data`` another value."""
    value = int.from_bytes(data[at : at + size], "little")
    edge = rng.choice((*_EDGES, value + 1, value - 1, value ^ 1 << rng.randrange(8 * size)))
    data[at : at + size] = (edge % (1 << 8 * size)).to_bytes(size, "little")


def _directory_records(image: bytes) -> list[int]:
    """Where what looks like a directory record begins: its numbers are the same both ways round."""
    return [
        at
        for at in range(16 * SECTOR, len(image) - 34, 2)
        if image[at] >= 34
        and image[at + 2 : at + 6] == image[at + 9 : at + 5 : -1]
        and image[at + 10 : at + 14] == image[at + 17 : at + 13 : -1]
        and any(image[at + 2 : at + 6])
    ]


def _is_udf(image: bytes, at: int) -> bool:
    kind, version = struct.unpack_from("<HH", image, at)
    return version in (2, 3) and (1 <= kind <= 9 or 256 <= kind <= 266)
