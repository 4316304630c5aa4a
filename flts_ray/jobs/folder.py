"""Where a command keeps what belongs to this machine."""

from __future__ import annotations

from pathlib import Path

from flts_ray.config import Config


def local_folder(config: Config) -> Path:
    """Where this machine keeps its part: the root itself, or `.flts/<name>` beside an S3 root."""
    root = config.root.removeprefix("file://")
    return Path(".flts") / config.name if "://" in root else Path(root)
