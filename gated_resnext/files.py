"""Files that are whole or not there: written under a temporary name, synced, renamed; damage is found on reading."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from gated_resnext.errors import UserError

Path = str | os.PathLike[str]


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[pathlib.Path]:
    """A temporary name beside `path` with the same ending; renamed to it on success, removed on failure.

    Works for a file and for a folder that is not there yet.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    holder = pathlib.Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
    try:
        temporary = holder / path.name
        yield temporary
        for written in [*temporary.rglob("*"), temporary] if temporary.is_dir() else [temporary]:
            _sync(written)
        os.replace(temporary, path)
        _sync(path.parent)  # the name; what else is in there is none of ours
    except OSError as error:
        if error.filename is None or str(holder) in str(error.filename):
            error.filename = str(path)
        raise
    finally:
        shutil.rmtree(holder, ignore_errors=True)


def _sync(path: pathlib.Path) -> None:
    """Forces a file, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Writes JSON as people read it: indented, one final newline."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Reads JSON.

    Raises:
        UserError: if the file is missing or is no JSON.
    """
    try:
        return json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"there is no {path}") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{path} is not a JSON file that can be read: {error}") from None


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes named arrays as .npz; the zip's checksums tell damage on reading."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def read_arrays(path: Path, *, digest: str | None = None) -> dict[str, np.ndarray]:
    """Reads what `write_arrays` wrote.

    Args:
        path: the .npz file.
        digest: its sha256, where it is known.

    Raises:
        UserError: if the file is missing, damaged, or not the one of that digest.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    if digest is not None and (found := sha256(path)) != digest:
        raise UserError(f"{path} is damaged: its sha256 should be {digest}, it is {found}; fetch it again")
    try:
        with open(path, "rb") as file:
            file.seek(
                -12, os.SEEK_END
            )  # the zip's own count of its members: a damaged list of them reads as a shorter one
            members = int.from_bytes(file.read(2), "little")
            file.seek(0)
            with np.load(file, allow_pickle=False) as archive:
                if len(archive.files) != members:
                    raise zipfile.BadZipFile("members are missing")
                return {name: archive[name] for name in archive.files}
    except (RuntimeError, zipfile.BadZipFile, ValueError, EOFError, OSError, KeyError, NotImplementedError) as error:
        raise UserError(f"{path} is damaged and cannot be read ({error}); delete it or fetch it again") from None
