"""Where saeflow finds and keeps files, and how it writes them: completely or not at all."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, Final

from saeflow.errors import NoSpace, NotWritable, SaeflowError

PACK: Final = Path(__file__).parent / "demo" / "pack"
"""The demo pack: `model/`, `saes/`, `atlas/` with its words, `texts/`, `quality.json`, `CARD.md`."""
_PACKS: Final = Path(__file__).parents[2] / "packs"
"""Other packs, found only in a clone of the repository: the wheel contains just the demo pack."""

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_CLOSED: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR})
_SAID: Final = {
    "No space left on device": errno.ENOSPC,
    "StorageFull": errno.ENOSPC,
    "database or disk is full": errno.ENOSPC,
    "FileTooLarge": errno.EFBIG,
    "attempt to write a readonly database": errno.EROFS,
}
"""What safetensors and SQLite, which do not raise OSError, say in these cases, and the matching errno."""
_PART: Final = re.compile(r"\..+\.(?P<here>[0-9a-f]{8})-(?P<pid>\d+)-\w+")
_SHA256_LINE: Final = b"\n#sha256 "
_SWEPT: Final[set[Path]] = set()


def cache_folder() -> Path:
    """The folder for atlases built by name: SAEFLOW_CACHE, else ~/.cache/saeflow."""
    return Path(os.environ.get("SAEFLOW_CACHE", "~/.cache/saeflow")).expanduser()


def pack_folder(release: str) -> Path | None:
    """The folder of the pack with this name, or None if this machine has no such pack.

    A pack is a release that comes with saeflow: `saes/`, `atlas/` with its words, `texts/`, `quality.json`, `CARD.md`.
    "demo" is part of the package and includes its model; other packs are in `packs/` of a clone or of the cache folder.
    """
    if release == "demo":
        return PACK
    places = [place / release for place in (_PACKS, cache_folder() / "packs")] if is_inside(release) else []
    return next((place for place in places if (place / "quality.json").is_file()), None)


def pack_names() -> tuple[str, ...]:
    """The names of the packs on this machine, "demo" first."""
    found = {path.parent.name for place in (_PACKS, cache_folder() / "packs") for path in place.glob("*/quality.json")}
    return "demo", *sorted(found)


def folder_and_pattern(name: str) -> tuple[str, str]:
    """Split `saes@*/trainer_1` into the folder `saes` and a pattern for its SAEs; an existing path has no pattern."""
    folder, at, pattern = name.rpartition("@")
    return (folder, pattern) if at and not Path(name).exists() and Path(folder).is_dir() else (name, "")


@contextmanager
def atomic_file(path: Path) -> Generator[Path]:
    """Yield a temporary file next to `path`; on success it replaces `path`, on an error it is removed.

    Whatever is at `path` stays until then. A killed process leaves its temporary file behind; the file name contains
    the process id, and the next process that writes to the folder removes it.

    Raises:
        NoSpace: when the disk is full.
        NotWritable: when the folder is not writable.
        OSError: when it cannot be written for another reason.
    """
    try:
        part = _begun(path)
        try:
            yield part
            part.chmod(0o644)
            with part.open("rb") as file:
                os.fsync(file.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except Exception as error:
        clear = write_error(error, path)
        if clear is None:
            raise
        raise clear from error


def is_inside(name: object) -> bool:
    """Whether a file or revision name is a relative path that stays inside its folder."""
    parts = PurePosixPath(name).parts if isinstance(name, str) else ()
    return bool(parts) and not {"..", "/", "\\"} & set(parts) and "\0" not in str(name)


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path` completely or not at all. Raises NoSpace, NotWritable, OSError like `atomic_file`."""
    with atomic_file(path) as part:
        part.write_bytes(data)


@contextmanager
def file_lock(path: Path) -> Generator[bool]:
    """Hold a lock for `path` that one process can hold at a time; yields whether it had to wait.

    Where files cannot be locked, it does not wait.

    Raises:
        OSError: when the folder cannot be written.
    """
    if os.name != "posix":
        yield False
        return
    import fcntl

    # not the filelock package: its versions differ on disks without locks, and in the files they leave behind
    lock, waited = path.with_name(f".{path.name}.lock"), False
    while True:
        with lock.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                fcntl.flock(file, fcntl.LOCK_EX)
                waited = True
            except OSError:  # the disk does not support locks
                pass
            try:
                is_current = os.path.samestat(os.fstat(file.fileno()), lock.stat())
            except FileNotFoundError:
                is_current = False
            if is_current:  # else the previous holder has removed the file: wait for the new one
                try:
                    yield waited
                finally:
                    lock.unlink(missing_ok=True)
                return


def add_sha256(data: bytes) -> bytes:
    """Append a last line with the SHA-256 of `data`."""
    import hashlib

    return data + _SHA256_LINE + hashlib.sha256(data).hexdigest().encode()


def check_sha256(data: bytes) -> bytes:
    """Verify and strip the line that `add_sha256` appended; bytes without one are returned unchanged.

    Raises:
        ValueError: when the data has changed.
    """
    import hashlib

    at = len(data) - len(_SHA256_LINE) - 64
    if at < 0 or data[at : at + len(_SHA256_LINE)] != _SHA256_LINE:
        return data
    if hashlib.sha256(data[:at]).hexdigest().encode() != data[at + len(_SHA256_LINE) :]:
        raise ValueError("it has changed since it was written")
    return data[:at]


def add_check(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with their checksum under "check", for a JSON file; an existing "check" is replaced."""
    plain = {name: value for name, value in values.items() if name != "check"}
    return {**plain, "check": _check(plain)}


def agrees_with_check(values: Mapping[str, Any]) -> bool:
    """Whether values read from a JSON file match their checksum; True if they have none."""
    plain = {name: value for name, value in values.items() if name != "check"}
    return values.get("check") in (None, _check(plain))


def _check(plain: Mapping[str, Any]) -> str:
    import json
    import zlib

    return f"{zlib.crc32(json.dumps(plain, sort_keys=True).encode()):08x}"


def write_error(error: BaseException, path: Path | str) -> NoSpace | NotWritable | None:
    """The error to raise in place of one that means `path` could not be written; None for any other error."""
    if isinstance(error, SaeflowError) or (isinstance(error, OSError) and _is_elsewhere(error, Path(path))):
        return None
    said = str(error)
    number = error.errno if isinstance(error, OSError) else None
    if number is None:
        number = next((known for text, known in _SAID.items() if text in said), None)
    if number in _FULL:
        clear = NoSpace(
            f"{path} cannot be written: {_reason(number)}. Nothing that was there is lost. Free some space, or give a "
            "folder on a larger disk, and run the same again."
        )
    elif number in _CLOSED:
        clear = NotWritable(
            f"{path} cannot be written: {_reason(number)}. Give a folder that you may write to, or make this one "
            "writable."
        )
    else:
        return None
    clear.errno = number
    return clear


def _is_elsewhere(error: OSError, path: Path) -> bool:
    """Whether an error concerns another file, such as one being read at the same time."""
    if not isinstance(error.filename, str):
        return False
    named = Path(error.filename)
    return path.parent != named.parent and named not in path.parents


def _reason(number: int) -> str:
    said = os.strerror(number)
    return f"{said[0].lower()}{said[1:]}"


def _begun(path: Path) -> Path:
    """Create an empty temporary file next to `path`, named after this process."""
    import tempfile

    _sweep(path.parent)
    for _ in range(10):
        path.parent.mkdir(parents=True, exist_ok=True)
        # another process may remove the folder at this moment, having found it empty
        with suppress(FileNotFoundError):
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.{_here()}-{os.getpid()}-")
            os.close(handle)
            return Path(name)
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path.parent))


def _sweep(folder: Path) -> None:
    """Remove temporary files left in `folder` by killed processes of this machine; done once per process and folder."""
    if os.name != "posix" or folder in _SWEPT:
        return
    _SWEPT.add(folder)
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            part = _PART.fullmatch(entry.name) if entry.name.startswith(".") else None
            if part and part["here"] == _here() and not _is_alive(int(part["pid"])):
                with suppress(OSError):
                    os.unlink(entry.path)


@cache
def _here() -> str:
    """An id of this machine and container, within which process ids are comparable."""
    import platform
    import zlib

    space = ""
    with suppress(OSError):
        space = os.readlink("/proc/self/ns/pid")
    return f"{zlib.crc32(f'{platform.node()} {space}'.encode()):08x}"


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
