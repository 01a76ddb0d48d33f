"""Files that people edit, too: read and replaced as a whole, or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from .errors import UsageError


def read_text(file: Path) -> str:
    """Empty where there is none. Raises UsageError."""
    try:
        return file.read_bytes().decode()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {file}: {error}") from error


def replace_text(file: Path, text: str) -> None:
    """All at once, with the old owner and mode. Raises UsageError; then nothing is changed."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        before = file.stat() if file.exists() else None
        handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
        try:
            with os.fdopen(handle, "w") as out:
                out.write(text)
                out.flush()
                os.fsync(out.fileno())
            os.chmod(name, before.st_mode & 0o7777 if before else 0o644)
            if before is not None and os.geteuid() == 0:
                os.chown(name, before.st_uid, before.st_gid)
            os.replace(name, file)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as error:
        raise UsageError(f"cannot write {file}: {error.strerror}; nothing is changed") from error


def remove(file: Path) -> None:
    """Raises UsageError."""
    try:
        file.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"cannot remove {file}: {error.strerror}") from error
