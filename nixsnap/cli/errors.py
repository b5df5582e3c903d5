"""How a command ends when something went wrong: one line, a hint below it, and the error's own exit code."""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Callable
from typing import Final

from nixsnap.errors import NixsnapError

log = logging.getLogger(__name__)

_ANOTHER_PLACE: Final = "name another place; --help tells which flags name places"
_HINTS: Final = {
    **dict.fromkeys((errno.EACCES, errno.EPERM), f"run it as a user who may do that, or {_ANOTHER_PLACE}"),
    **dict.fromkeys((errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.EROFS), _ANOTHER_PLACE),
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "make room on its disk"),
}

_INTERRUPTED: Final = 130  # 128 + SIGINT, as shells have it


def reported(program: str, command: Callable[[], int]) -> int:
    """Run a command, and print what it raises to standard error.

    Returns:
        The command's exit code, or the error's.
    """
    try:
        return command()
    except NixsnapError as exc:
        print(f"{program}: {exc.message}", file=sys.stderr)
        if exc.hint:
            print(f"  {exc.hint}", file=sys.stderr)
        log.debug("where it came from", exc_info=exc)
        return exc.exit_code
    except BrokenPipeError:
        sys.stderr.close()  # whoever read us has gone; the interpreter would only complain at its end
        return 1
    except OSError as exc:
        named = "" if exc.filename is None else f"{os.fsdecode(exc.filename)!r}: "
        print(f"{program}: {named}{exc.strerror or exc}", file=sys.stderr)
        if exc.filename is not None and exc.errno in _HINTS:
            print(f"  {_HINTS[exc.errno]}", file=sys.stderr)
        log.debug("where it came from", exc_info=exc)
        return 1
    except KeyboardInterrupt:
        return _INTERRUPTED
