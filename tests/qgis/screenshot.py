"""Open layers in the real QGIS on a virtual screen and save its window.

    python3 tests/qgis/screenshot.py window.png map.tif map.gpkg

Needs qgis and xvfb; any Python will do.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

SCREEN = "1400x900x24"
PATIENCE_S = 90
PROFILE = Path(".local/share/QGIS/QGIS3/profiles/default")
PLUGIN = Path(__file__).parents[2] / "qgis_plugin" / "earthgate_qgis"


def in_qgis(
    script: Path,
    variables: Mapping[str, str],
    *,
    plugin: bool = False,
    patience_s: int = PATIENCE_S,
) -> int:
    """Run a script in the real QGIS and return the exit code.

    Args:
        script: Ends QGIS when it is done.
        variables: Environment that the script reads.
        plugin: Whether QGIS starts with our plugin.
        patience_s: After so many seconds QGIS is ended.
    """
    command = ["timeout", str(patience_s)]  # ends the screen and QGIS, too
    command += ["xvfb-run", "-a", "-s", f"-screen 0 {SCREEN}"]
    # qgis.bin: Debian's wrapper adds options of its own.
    command += ["qgis.bin", "--noversioncheck", "--nologo", "--code", str(script)]
    with tempfile.TemporaryDirectory() as home:  # no profile of the user, and no traces in it
        if plugin:
            _enable_plugin(Path(home) / PROFILE)
        environment = {
            "PATH": "/usr/bin:/bin",  # QGIS takes the first python3 on the path for its own
            "HOME": home,
            "XDG_RUNTIME_DIR": home,
            "PYTHONDONTWRITEBYTECODE": "1",
            **variables,
        }
        return subprocess.run(command, env=environment, check=False).returncode


def _enable_plugin(profile: Path) -> None:
    for folder in ("python/plugins", "QGIS"):
        (profile / folder).mkdir(parents=True)
    (profile / "python" / "plugins" / PLUGIN.name).symlink_to(PLUGIN)
    settings = f"[PythonPlugins]\n{PLUGIN.name}=true\n"
    (profile / "QGIS" / "QGIS3.ini").write_text(settings)


def main(picture: str, *layers: str) -> int:
    variables = {"EARTHGATE_PICTURE": picture, "EARTHGATE_LAYERS": os.pathsep.join(layers)}
    return in_qgis(Path(__file__).with_name("desktop.py"), variables)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
