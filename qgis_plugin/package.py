"""Build the zip for the QGIS plugin portal: ``python qgis_plugin/package.py [FOLDER]``.

The same sources give the same bytes, so that anybody can check a published zip.
"""

import sys
import zipfile
from configparser import ConfigParser
from pathlib import Path

PLUGIN = Path(__file__).with_name("earthgate_qgis")
ENDINGS = {".py", ".svg", ".txt"}
NAMES = {"LICENSE"}
_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip can hold
_MODE = 0o100644 << 16


def files() -> list[Path]:
    """Return what belongs into the zip, sorted."""
    found = (path for path in PLUGIN.rglob("*") if path.suffix in ENDINGS or path.name in NAMES)
    return sorted(path for path in found if path.is_file())


def build(folder: Path) -> Path:
    """Write the zip into the folder and return it."""
    metadata = ConfigParser(interpolation=None)
    metadata.read(PLUGIN / "metadata.txt", encoding="utf-8")
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{PLUGIN.name}-{metadata['general']['version']}.zip"
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in files():
            entry = zipfile.ZipInfo(path.relative_to(PLUGIN.parent).as_posix(), _DATE)
            entry.create_system, entry.external_attr = 3, _MODE  # on Windows, too
            entry.compress_type = zipfile.ZIP_DEFLATED
            text = path.read_bytes().replace(b"\r\n", b"\n")  # as in a checkout on Linux
            archive.writestr(entry, text)
    return target


if __name__ == "__main__":
    sys.stdout.write(f"{build(Path(*sys.argv[1:2] or ['dist']))}\n")
