"""Files that are whole or not there: written under a temporary name, synced, renamed; damage is found on reading."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import lzma
import os
import pathlib
import re
import shutil
import stat
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from gated_resnext.errors import UserError

Path = str | os.PathLike[str]
STALE_S = 7 * 24 * 3600  # longer than anything is written
OTHER = -1  # a stream that is none of this process
# What a damaged archive raises, by the byte that is damaged
DAMAGE = (
    RuntimeError, zipfile.BadZipFile, ValueError, EOFError, OSError, KeyError, NotImplementedError, zlib.error,
    lzma.LZMAError,
)  # fmt: skip
# Of systems and folders that sync files alone, as those that a virtual machine shares
NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM, errno.EBADF, errno.EIO)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[pathlib.Path]:
    """A temporary name beside `path` with the same ending; renamed to it on success, removed on failure.

    Works for a file and for a folder that is not there yet. A link stays one, what it leads to is replaced. A pipe, a
    device or what this process prints to, such as /dev/stdout, is written to.
    """
    path = pathlib.Path(path)
    kind = _stream_kind(path)
    if kind is not None:
        with tempfile.TemporaryDirectory() as folder:
            temporary = pathlib.Path(folder) / path.name
            yield temporary
            sys.stdout.flush()
            with os.fdopen(os.open(path, os.O_WRONLY) if kind == OTHER else os.dup(kind), "wb") as stream:
                stream.write(temporary.read_bytes())
        return
    if path.is_symlink():
        path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    with _partial(path) as temporary:
        yield temporary
        for written in [*temporary.rglob("*"), temporary] if temporary.is_dir() else [temporary]:
            _sync(written)
        os.replace(temporary, path)
        _sync(path.parent)


def _stream_kind(path: pathlib.Path) -> int | None:
    """The descriptor where this process prints to it, `OTHER` for a pipe or device; None of what can be replaced."""
    try:
        found = path.stat()
    except OSError:
        return None
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):  # closed
            if os.path.samestat(found, os.fstat(descriptor)):
                return descriptor
    return None if stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode) else OTHER


class Version:
    """A folder on its way to become a version: written at `folder`, found at `path` once it is whole."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder, self.path = folder, folder


@contextlib.contextmanager
def next_version(parent: Path) -> Iterator[Version]:
    """A new, empty folder that becomes `parent`/<one more than the largest number there> on success.

    Until then it has a name that is no number, so nobody who looks for versions sees it; on failure it is removed, and
    so are the folders above it that had to be made. Of two that end at the same time, both keep their own number.
    """
    parent = pathlib.Path(parent)
    made = [folder for folder in (parent, *parent.parents) if not folder.exists()]
    parent.mkdir(parents=True, exist_ok=True)
    try:
        with _partial(parent / "version") as temporary:
            temporary.mkdir()
            version = Version(temporary)
            yield version
            for written in [*temporary.rglob("*"), temporary]:
                _sync(written)
            version.path = _numbered(temporary, parent)
            _sync(parent)
    except BaseException:
        for folder in made:
            with contextlib.suppress(OSError):  # not empty: somebody else's
                folder.rmdir()
        raise


def versions(parent: Path) -> list[int]:
    """The numbers among the names in a folder, in order; none where there is no such folder."""
    return sorted(_version_names(pathlib.Path(parent)))


def newest_version(parent: Path) -> pathlib.Path | None:
    """The folder of the largest number, which may be written with zeros before it; None where there is none."""
    names = _version_names(pathlib.Path(parent))
    return pathlib.Path(parent) / names[max(names)] if names else None


def _version_names(parent: pathlib.Path) -> dict[int, str]:
    """The names of versions, numbers of 64 bits, by number."""
    names = [path.name for path in parent.iterdir()] if parent.is_dir() else []
    return {int(name): name for name in names if re.fullmatch("[0-9]+", name) and int(name) < 2**63}


def _numbered(folder: pathlib.Path, parent: pathlib.Path) -> pathlib.Path:
    """Renames a folder to the next number, and to the one after that where somebody else was faster."""
    while True:
        path = parent / str(max(versions(parent), default=0) + 1)
        try:
            folder.rename(path)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
        else:
            return path


@contextlib.contextmanager
def _partial(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A name like `path`'s in a hidden folder beside it, which is removed at the end; so are old ones left there."""
    for stale in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):  # of a process that was killed
        with contextlib.suppress(OSError):
            if time.time() - stale.stat().st_mtime > STALE_S:
                shutil.rmtree(stale)
    holder = pathlib.Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
    try:
        yield holder / path.name
    except OSError as error:
        if error.filename is None or str(holder) in str(error.filename):
            error.filename = str(path)
        raise
    finally:
        shutil.rmtree(holder, ignore_errors=True)


def _sync(path: pathlib.Path) -> None:
    """Forces a file, or a folder's list of names, to the disk; what is behind the names may be somebody else's."""
    if os.name == "nt":  # which opens no folder, and syncs nothing that is open for reading
        return
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in NO_SYNC or not path.is_dir():
            raise


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
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"{path} is not a JSON file that can be read: {error}") from None


def read_fields(path: Path) -> dict[str, Any]:
    """The fields of a JSON object; none where the file holds something else.

    Raises:
        UserError: if the file is missing or is no JSON.
    """
    fields = read_json(path)
    return fields if isinstance(fields, dict) else {}


def check_archive(path: Path) -> None:
    """Compares the checksums of a zip archive, such as a .keras file: where its reader seeks, Python 3.13 does not.

    Raises:
        zipfile.BadZipFile: if one is another; what is no such archive is left to its reader.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        if (broken := archive.testzip()) is not None:
            raise zipfile.BadZipFile(f"{broken} has another checksum")


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
        OSError: if it may not or cannot be read.
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
                # numpy reads as far as a header says, and then checks nothing
                if digest is None and (broken := archive.zip.testzip()):
                    raise zipfile.BadZipFile(f"{broken} has another checksum")
                return {name: archive[name] for name in archive.files}
    except DAMAGE as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # that of a seek before its start
            raise  # what is in it may be whole
        raise UserError(f"{path} is damaged and cannot be read ({error}); delete it or fetch it again") from None
