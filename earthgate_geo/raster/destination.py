"""The place of an output file: checked, locked, and taken only by a finished file."""

import os
import shutil
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from filelock import FileLock, Timeout

from earthgate_geo.errors import OutputError, StorageError

_TIFF = ("{path}.aux.xml", "{path}.msk", "{path}.ovr", "{stem}.qml")
_SIDECARS = {
    ".tif": _TIFF,
    ".tiff": _TIFF,
    ".gpkg": ("{path}-journal", "{path}-shm", "{path}-wal"),
}

_PUBLISHING = "publishing"
"""File in the hidden folder: outputs are getting their names, or a run was killed as they did."""

_SMALL_BYTES = 1_000_000
"""Enough for renaming files: what a folder may grow by."""


class Destination:
    """A place for one output file, locked against a second run, with a scratch folder.

    Entering makes the hidden folder ``.<name>.earthgate`` beside the output and empties what a
    killed run left in it; leaving removes it.

    Args:
        path: The output.
        overwrite: Whether ``publish`` may replace an older output and its sidecars.
        inputs: Files that the output must not be.
        keep: Name of an entry of the folder that stays there until a run succeeds, to be resumed.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        overwrite: bool,
        inputs: Sequence[str | Path] = (),
        keep: str | None = None,
    ) -> None:
        self.path = Path(path)
        self.scratch = self.path.parent / f".{self.path.name}.earthgate"
        """Folder for intermediate files, on the disk of the output; exists while entered."""
        self._overwrite = overwrite
        self._inputs = inputs
        self._keep = keep
        self._lock = FileLock(self.scratch / "lock", timeout=0, thread_local=False)

    def check(self) -> None:
        """Refuse an output that cannot or must not be written, without touching anything.

        Raises:
            OutputError: It exists, is an input, or its folder is missing or not writable.
        """
        folder = self.path.parent
        if not folder.is_dir():
            raise OutputError(found=f"the folder of {self.path} does not exist", fix="Create it")
        if self.path.is_dir():
            raise OutputError(found=f"{self.path} is a folder", expected="the name of a file")
        for source in self._inputs:
            if self.path.exists() and Path(source).exists() and self.path.samefile(source):
                raise OutputError(
                    found=f"{self.path} is an input of this run",
                    expected="another file for the output",
                )
        for taken in (self.path, *sidecars(self.path)):
            if taken.exists() and not (self._overwrite or self._half_published()):
                raise OutputError(
                    found=f"{taken} exists",
                    fix="Pass --overwrite to replace it, or give another name",
                )
        if not os.access(folder, os.W_OK):
            raise _not_writable(folder)

    def __enter__(self) -> Self:
        self.check()
        try:
            self.scratch.mkdir(exist_ok=True)
            self._lock.acquire()
        except Timeout as error:
            raise OutputError(
                found=f"another run is writing {self.path} (it holds {self.scratch})",
                expected="one run at a time",
                fix="Wait until it ends, or give another name",
            ) from error
        except OSError as error:
            raise _not_writable(self.path.parent) from error
        self._overwrite |= self._half_published()
        self._empty(but=(self._keep, _PUBLISHING))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._empty(but=(self._keep, _PUBLISHING) if error else (_PUBLISHING,))
        # Last, as the run is over with it; only one that is killed leaves it.
        (self.scratch / _PUBLISHING).unlink(missing_ok=True)
        self._lock.release()
        with suppress(OSError):  # kept files, or a run that waited for the lock, may be in here
            Path(self._lock.lock_file).unlink(missing_ok=True)
            self.scratch.rmdir()

    def begin_publishing(self) -> None:
        """Mark the output as about to be replaced: should the run be killed, the next may do so."""
        (self.scratch / _PUBLISHING).touch()

    def _half_published(self) -> bool:
        return (self.scratch / _PUBLISHING).exists()

    def _empty(self, *, but: Collection[str | None]) -> None:
        for entry in self.scratch.iterdir():
            if entry.name in but:
                continue
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            elif entry != Path(self._lock.lock_file):
                with suppress(OSError):
                    entry.unlink()


def sidecars(path: Path) -> tuple[Path, ...]:
    """Return the files beside ``path`` that programs read along with it, there or not."""
    patterns = _SIDECARS.get(path.suffix.lower(), ())
    return tuple(
        path.parent / pattern.format(path=path.name, stem=path.stem) for pattern in patterns
    )


def publish(built: Path, path: Path) -> None:
    """Move a finished file and its sidecars to the name ``path``; those of an older file go.

    Nothing of the older file is touched if it cannot be replaced.

    Args:
        built: The finished file, on the disk of ``path``; its sidecars lie beside it.
        path: The name to take.

    Raises:
        OutputError: The older file is open in another program.
        StorageError: The disk refuses.
    """
    try:
        built.replace(path)
        for fresh, old in zip(sidecars(built), sidecars(path), strict=True):
            if fresh.exists():
                fresh.replace(old)
            else:
                old.unlink(missing_ok=True)
    except PermissionError as error:
        raise OutputError(
            found=f"{error.filename2 or error.filename} cannot be replaced",
            expected="a file that no other program has open",
            fix="Close it there, e.g. remove the layer in QGIS, and run again",
        ) from error
    except OSError as error:
        raise storage_error(path, _SMALL_BYTES) from error


def storage_error(path: Path, needed_bytes: int, *, found: str = "") -> StorageError:
    """Return the error for an output that the disk did not take.

    Args:
        path: The output.
        needed_bytes: Free space that is enough in any case.
        found: What went wrong, if it is more than that.
    """
    folder = path.parent
    free_bytes = shutil.disk_usage(folder).free
    return StorageError(
        found=found or f"{path} could not be written",
        expected=f"up to {_amount(needed_bytes)} free in {folder}, where {_amount(free_bytes)} are",
        fix="Free some space, check the quota or write to another disk, then run again",
    )


def _amount(size_bytes: int) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.1f} {unit}"
    return f"{size_bytes / 1e3:.0f} kB"


def _not_writable(folder: Path) -> OutputError:
    return OutputError(found=f"the folder {folder} is not writable", fix="Write somewhere else")
