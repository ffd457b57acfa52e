"""Images that this project did not make, out of Debian packages."""

import pytest

from .images import PACKAGED, Images
from .mounts import Lab, same_content
from .servers import Nginx

MEMBERS = [(package, member) for package, members in PACKAGED.items() for member in members]


@pytest.mark.parametrize(("package", "member"), MEMBERS)
def test_image_of_a_package(
    lab: Lab, images: Images, nginx: Nginx, package: str, member: str
) -> None:
    image = images.packaged(package, member)
    assert image.stat().st_size > 100_000
    url = nginx.url(str(image.relative_to(images.root)).replace("+", "%2B"))
    with lab.mounted(url) as mounted:
        assert mounted.image.name == image.name
        assert same_content(mounted.image, image)
