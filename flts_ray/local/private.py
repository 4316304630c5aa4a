"""A folder of this machine for what only this user may see: caches, sockets."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from flts_ray.errors import ConfigError


def private_folder(prefix: str = "flts-ray") -> Path:
    """The same folder at every call, closed to others. Raises ConfigError if it is not ours."""
    folder = Path(tempfile.gettempdir()) / f"{prefix}-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise ConfigError(f"{folder}: belongs to somebody else; set TMPDIR to a folder of your own")
    return folder
