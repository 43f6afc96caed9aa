from importlib.util import find_spec

# The engine's environment has no QGIS, and its run of all tests passes by here. We look for
# QGIS's osgeo because `qgis` is this very folder where `tests` is on the path.
collect_ignore_glob = [] if find_spec("osgeo") else ["test_*.py"]
