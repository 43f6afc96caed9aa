"""What came of the scenes of a folder, one line of JSON each, and where to go on."""

import json
import os
from pathlib import Path
from typing import Any

from earthgate_geo.raster.destination import storage_error

Record = dict[str, Any]


class Manifest:
    """A text file that grows by one line per finished scene; the last line about a map counts.

    Args:
        path: The file, there or not, in the folder of the maps.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def records(self) -> dict[str, Record]:
        """Return the newest record by the name of the map."""
        found: dict[str, Record] = {}
        if self._path.exists():
            for line in self._path.read_text(encoding="utf-8").splitlines():
                try:
                    record = json.loads(line)
                    found[record["map"]] = record
                except (LookupError, TypeError, ValueError):
                    continue  # half a line of a run that was killed
        return found

    def outputs(self) -> set[Path]:
        """Return the files of all finished scenes, resolved."""
        folder = self._path.parent.resolve()
        return {
            folder / Path(path).name
            for record in self.records().values()
            for path in record.get("outputs", {}).values()
        }

    def append(self, record: Record) -> None:
        """Add a record; it is in the file when this returns.

        Raises:
            StorageError: The disk refuses.
        """
        line = json.dumps(record).encode() + b"\n"
        try:
            with self._path.open("a+b") as file:
                if file.tell():
                    file.seek(-1, os.SEEK_END)
                    if file.read() != b"\n":  # half a line of a run that was killed
                        line = b"\n" + line
                file.write(line)
        except OSError as error:
            raise storage_error(self._path, len(line)) from error
