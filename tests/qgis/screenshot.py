"""Open layers in the real QGIS on a virtual screen and save its window.

    python3 tests/qgis/screenshot.py window.png map.tif map.gpkg

Needs qgis and xvfb; any Python will do.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

SCREEN = "1400x900x24"
PATIENCE_S = 90


def main(picture: str, *layers: str) -> int:
    command = ["timeout", str(PATIENCE_S)]  # ends the screen and QGIS, too
    command += ["xvfb-run", "-a", "-s", f"-screen 0 {SCREEN}"]
    # qgis.bin: Debian's wrapper adds options of its own.
    command += ["qgis.bin", "--noversioncheck", "--nologo"]
    command += ["--code", str(Path(__file__).with_name("desktop.py"))]
    with tempfile.TemporaryDirectory() as home:  # no profile of the user, and no traces in it
        environment = {
            "PATH": "/usr/bin:/bin",  # QGIS takes the first python3 on the path for its own
            "HOME": home,
            "XDG_RUNTIME_DIR": home,
            "EARTHGATE_PICTURE": picture,
            "EARTHGATE_LAYERS": os.pathsep.join(layers),
        }
        return subprocess.run(command, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
