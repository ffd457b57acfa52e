"""Fixtures for images."""

from collections.abc import Callable
from pathlib import Path

import pytest
from real.images import cache_directory

from lazyfs.formats.iso.catalog import ROCK_RIDGE

from .flavours import FLAVOURS, IsoImages, make, plant, plant_posix

Made = Callable[[str], tuple[Path, Path]]


@pytest.fixture(scope="session")
def iso_images() -> IsoImages:
    return IsoImages(cache_directory())


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """``made(flavour)``: an image of that flavour, and the tree that went into it."""
    directory = tmp_path_factory.mktemp("flavours")
    trees = {True: plant_posix(directory / "posix"), False: plant(directory / "simple")}

    def make_once(flavour: str) -> tuple[Path, Path]:
        namespace, command = FLAVOURS[flavour]
        image, tree = directory / f"{flavour}.iso", trees[namespace == ROCK_RIDGE]
        return (image if image.exists() else make(command, tree, image)), tree

    return make_once
