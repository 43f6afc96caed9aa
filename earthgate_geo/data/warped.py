"""One band of a raster on the grid of a scene: labels."""

from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from pyproj import Transformer
from pyproj.exceptions import ProjError
from rasterio.enums import Resampling
from rasterio.errors import RasterioIOError
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window as RasterioWindow

from earthgate_geo.errors import DataError
from earthgate_geo.raster.grid import Grid, Window
from earthgate_geo.raster.read import Pixels, Scene

# In pixels of the source. GDAL's default of 0.125 would move the labels of a 10 m raster by a
# dozen pixels of a 0.1 m scene; rasterio 1.4 fails on 0.
_TOLERANCE = 0.001


class WarpedBand:
    """The first band of a raster, read in windows of another grid.

    The file stays open between reads, until ``close``: a process that is forked meanwhile would
    share its position in the file. Pickled as its file and grid. Memory: the window asked for.

    Args:
        raster: The raster; any CRS, resolution and orientation.
        grid: The grid to read on.
        resampling: How a pixel of ``grid`` gets its value.
        nodata_is_data: Whether pixels of the file's nodata value count all the same.

    Raises:
        DataError: There is no way from the raster's CRS to the grid's.
    """

    def __init__(
        self,
        raster: Scene,
        grid: Grid,
        *,
        resampling: Resampling,
        nodata_is_data: bool = False,
    ) -> None:
        self.path = raster.path
        self.dtype = raster.dtype
        self.grid = grid
        self._options: dict[str, Any] = {
            "src_crs": raster.grid.crs,
            "add_alpha": "alpha" not in raster.meanings,
            "resampling": resampling,
        }
        if nodata_is_data:
            self._options["src_nodata"] = None
        self._vrt: WarpedVRT | None = None
        check_reachable(self.path, raster.grid.crs.to_wkt(), grid)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_vrt": None}

    def read(self, window: Window) -> Pixels:
        """Read a window, which may reach past the grid: zero and invalid there.

        Raises:
            InputError: The window lies wholly outside.
            DataError: The file is damaged there.
        """
        inside = window.clipped(self.grid.size)
        shape = (window.size.rows, window.size.cols)
        values, valid = np.zeros((1, *shape), self.dtype), np.zeros(shape, np.bool_)
        rows = slice(inside.row - window.row, inside.row_stop - window.row)
        cols = slice(inside.col - window.col, inside.col_stop - window.col)
        values[0, rows, cols], valid[rows, cols] = self._read(inside)
        return Pixels(values, valid)

    def close(self) -> None:
        """Let go of the file; the next read opens it again."""
        if self._vrt is not None:
            source = self._vrt.src_dataset
            self._vrt.close()
            source.close()
            self._vrt = None

    def _read(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        area = RasterioWindow(window.col, window.row, window.size.cols, window.size.rows)
        if self._vrt is None:
            self._vrt = self._open()
        try:
            # The alpha band is the last, whether it is the file's own or added.
            values, opacity = self._vrt.read([1, self._vrt.count], window=area)
        except RasterioIOError as error:
            raise DataError(
                found=f"{self.path} cannot be read",
                expected="a complete file",
                fix="It is damaged or cut short: copy it again from its source",
            ) from error
        return values, (opacity > 0) & np.isfinite(values)

    def _open(self) -> WarpedVRT:
        return WarpedVRT(
            rasterio.open(self.path),
            crs=self.grid.crs,
            transform=self.grid.transform,
            height=self.grid.size.rows,
            width=self.grid.size.cols,
            tolerance=_TOLERANCE,
            # Else GDAL fills the alpha band with the nodata value, and nodata looks opaque.
            init_dest_nodata=False,
            **self._options,
        )


def check_reachable(path: str, crs_wkt: str, grid: Grid) -> None:
    """Check that coordinates of a file can be brought into the CRS of a grid.

    Raises:
        DataError: There is no transformation.
    """
    try:
        Transformer.from_crs(crs_wkt, grid.crs.to_wkt())
    except ProjError as error:
        raise DataError(
            found=f"{path} has a CRS from which PROJ knows no way to the scene's",
            expected="a CRS tied to the Earth, like the scene's",
            fix="Write the right CRS into it with gdal_edit.py -a_srs or ogr2ogr -a_srs",
        ) from error
