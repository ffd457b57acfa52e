"""argparse, with errors of our own: one line, and exit code 2."""

import argparse
import re
from typing import NoReturn

from lazyfs.errors import UsageError


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are UsageErrors, and that takes no abbreviations."""

    def __init__(self, prog: str, description: str, epilog: str = "", usage: str = "") -> None:
        super().__init__(
            prog=prog,
            usage=usage or None,
            description=description,
            epilog=epilog,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def takes_value(self, option: str) -> bool | None:
        """Whether ``--option`` needs a value; None if there is no such option."""
        action = self._option_string_actions.get(option)
        return None if action is None else action.nargs != 0

    def error(self, message: str) -> NoReturn:
        # The value of an option that is misspelt may be a secret.
        shown = re.sub(r"(unrecognized arguments: [^ =]*).*", r"\1", message, flags=re.DOTALL)
        raise UsageError(shown, f"see {self.prog} --help")
