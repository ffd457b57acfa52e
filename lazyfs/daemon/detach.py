"""Detaching a device from outside its daemon, and reporting the processes that hold it.

Separate from ``attach.py``, so that it needs no event loop.
"""

from contextlib import closing

from lazyfs.core.errors import DeviceError
from lazyfs.frontends.nbdcontrol import index_of, owner_of
from lazyfs.frontends.nbdioctl import open_control
from lazyfs.system.holders import holders


def detach(device: str) -> None:
    """Detach an unused NBD device; its daemon then ends by itself.

    A device in use is left alone: it would be neither attached nor free until its last user has
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
