"""Bands that lie in files of their own, as one raster that is written nowhere."""

import xml.etree.ElementTree as ET
from collections.abc import Mapping

from rasterio.dtypes import dtype_rev, typename_fwd
from rasterio.enums import MaskFlags
from rasterio.io import DatasetReader

from earthgate_geo.errors import DataError

_FIX = "Give one with --asset, or put them into one file first, e.g. with gdalbuildvrt -separate"


def stacked(parts: Mapping[str, DatasetReader]) -> str:
    """Return the XML of a VRT whose bands are rasters of one band and one grid.

    Args:
        parts: Open rasters by the name to call them in an error, in the order of the bands.

    Raises:
        DataError: One has several bands, another grid, or a mask that is no nodata value.
    """
    (name, first), *others = parts.items()
    for other, part in parts.items():
        if part.count != 1:
            raise DataError(
                found=f"the asset {other} has {part.count} bands",
                expected="one band in each of several assets",
                fix="Give it alone with --asset",
            )
        if MaskFlags.per_dataset in part.mask_flag_enums[0]:
            raise DataError(
                found=f"the asset {other} has a mask of its own",
                expected="a nodata value, or none, in each of several assets",
                fix=_FIX,
            )
    for other, part in others:
        if _grid(part) != _grid(first):
            raise DataError(
                found=f"the assets {name} ({_size(first)}) and {other} ({_size(part)}) lie on "
                "different grids",
                expected="one grid",
                fix=_FIX,
            )
    return _vrt(first, list(parts.values()))


def _grid(part: DatasetReader) -> tuple[object, ...]:
    return part.shape, part.transform, part.crs


def _size(part: DatasetReader) -> str:
    return f"{part.height} x {part.width} px of {part.res[0]:g}"


def _vrt(first: DatasetReader, parts: list[DatasetReader]) -> str:
    root = ET.Element("VRTDataset", rasterXSize=str(first.width), rasterYSize=str(first.height))
    if first.crs:
        ET.SubElement(root, "SRS").text = first.crs.to_wkt()
    ET.SubElement(root, "GeoTransform").text = ", ".join(map(repr, first.transform.to_gdal()))
    for number, part in enumerate(parts, 1):
        kind = typename_fwd[dtype_rev[part.dtypes[0]]]
        band = ET.SubElement(root, "VRTRasterBand", dataType=kind, band=str(number))
        if part.nodata is not None:
            ET.SubElement(band, "NoDataValue").text = repr(part.nodata)
        source = ET.SubElement(band, "SimpleSource")
        # The first of its files is the raster as GDAL calls it, e.g. /vsicurl/ and an address.
        ET.SubElement(source, "SourceFilename", relativeToVRT="0").text = part.files[0]
        ET.SubElement(source, "SourceBand").text = "1"
    return ET.tostring(root, encoding="unicode")
