"""Where things are kept that can be made again: compiled programs, decoded pictures."""

import os
from pathlib import Path


def user_cache() -> Path:
    """This project's folder in the user's cache folder: $XDG_CACHE_HOME, else ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "experiments"
