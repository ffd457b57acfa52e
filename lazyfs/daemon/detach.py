"""Detaching from outside of the daemon, and saying who is in the way.

Apart from ``attach.py``, so that it needs no event loop.
"""

from contextlib import closing

from lazyfs.core.errors import DeviceError
from lazyfs.frontends.nbdcontrol import index_of, owner_of
from lazyfs.frontends.nbdioctl import open_control
from lazyfs.system.holders import holders


def detach(device: str) -> None:
    """Detach an NBD device that nobody uses; its daemon ends by itself.

    One that is in use is left alone: it would be neither attached nor free until the last user has
    closed it. Raises DeviceError.
    """
    index = index_of(device)
    with closing(open_control()) as control:
        if not control.is_attached(index):
            raise DeviceError(
                f"nothing is attached to {device}", "lazyfs status shows what is attached"
            )
        held = holders(device, owner_of(index))
        if held:
            raise DeviceError(f"{device} is in use: {'; '.join(held)}", "end that first")
        control.disconnect(index)
