"""Servers as they are found on the web: with limits, behind caches and redirects."""

import threading

from .images import MIB
from .mounts import Lab, read
from .servers import Answer, Request, Scripted


def test_web_server_with_a_limit_for_answers(lab: Lab, scripted: Scripted, content: bytes) -> None:
    most = 32 << 10

    def capped(request: Request) -> Answer | None:
        if not request.span:
            return None
        first, last = request.span
        cut = {"range": f"bytes={first}-{min(last, first + most - 1)}"}
        return scripted.right_answer(Request(request.path, cut))

    scripted.behaviour = capped
    with lab.mounted(scripted.url("image.raw")) as mounted:
        assert read(mounted.image, 0, len(content)) == content


def test_web_server_that_does_not_say_the_size(
    lab: Lab, scripted: Scripted, content: bytes
) -> None:
    def sizeless(request: Request) -> Answer:
        answer = scripted.right_answer(request)
        part = answer.headers["Content-Range"].partition("/")[0]
        answer.headers["Content-Range"] = f"{part}/*"
        return answer

    scripted.behaviour = sizeless
    with lab.mounted(scripted.url("image.raw")) as mounted:
        assert mounted.image.stat().st_size == len(content)
        assert read(mounted.image, MIB, 4096) == content[MIB : MIB + 4096]


def test_web_server_whose_cache_cannot_reach_it_for_a_while(
    lab: Lab, scripted: Scripted, content: bytes
) -> None:
    """Codes of caches and of quotas, which no RFC has."""
    left = [520, 530, 509, 507]
    lock = threading.Lock()

    def behaviour(request: Request) -> Answer | None:
        with lock:
            return None if request.opens or not left else Answer(left.pop())

    scripted.behaviour = behaviour
    with lab.mounted(scripted.url("image.raw"), troubled=True) as mounted:
        assert read(mounted.image, MIB, 4096) == content[MIB : MIB + 4096]
    assert not left


def test_web_link_whose_token_expires(lab: Lab, scripted: Scripted, content: bytes) -> None:
    """As S3 says it: with a 400."""
    served = scripted.files["/image.raw"]
    issued = [0]

    def behaviour(request: Request) -> Answer | None:
        if request.path == "/image.raw":
            issued[0] += 1
            return Answer(302, {"Location": f"/signed?token={issued[0]}"})
        scripted.files[request.path] = served
        good = request.path == f"/signed?token={issued[0]}"
        return None if good else Answer(400, {}, b"<Code>ExpiredToken</Code>")

    scripted.behaviour = behaviour
    with lab.mounted("--readahead", "0", scripted.url("image.raw")) as mounted:
        for offset in range(MIB, 3 * MIB, MIB // 2):
            issued[0] += 1
            assert read(mounted.image, offset, 4096) == content[offset : offset + 4096]


def test_web_redirect_with_a_space_in_it(lab: Lab, scripted: Scripted, content: bytes) -> None:
    scripted.files["/an%20image.raw"] = scripted.files["/image.raw"]
    scripted.behaviour = lambda request: (
        Answer(302, {"Location": "/an image.raw"}) if request.path == "/image.raw" else None
    )
    with lab.mounted(scripted.url("image.raw")) as mounted:
        assert read(mounted.image, MIB, 4096) == content[MIB : MIB + 4096]
