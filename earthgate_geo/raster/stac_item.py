"""STAC Items as scenes: which of their assets are the image, and what its bands show."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit
from urllib.request import url2pathname

from earthgate_geo.errors import DataError, InputError, MissingDependencyError
from earthgate_geo.raster.bands import ALPHA, RGB, described_band

COLLECTION_NAME = "collection.json"
"""Name of the Collection in a folder of maps."""

_ENDINGS = (".json", ".geojson")
_IN_AN_API = re.compile(r"/collections/[^/]+/items/[^/]+/?$")

_ASIDE = {"thumbnail", "overview", "metadata"}
"""Roles of pictures that are not the data."""

_BAND_LISTS = ("bands", "eo:bands", "raster:bands")
"""Fields that list an asset's bands: of STAC 1.1, of eo 1.x, and of raster 1.x."""


@dataclass(frozen=True, kw_only=True)
class ItemAsset:
    """A file of an Item."""

    name: str
    """Its key in the Item."""

    href: str
    """Path or address, absolute."""

    meanings: tuple[str | None, ...]
    """What each band shows; empty where the Item names none."""

    roles: frozenset[str]
    """What it is there for."""

    media_type: str
    """Its type, empty where the Item does not say."""

    nodata: float | None = None
    """The number that stands for no data in all of its bands, if the Item names one."""

    @property
    def is_image(self) -> bool:
        """Whether it may be the scene."""
        if self.roles & _ASIDE:
            return False
        known = urlsplit(self.href).path.lower().endswith((".tif", ".tiff", ".jp2", ".vrt"))
        return self.media_type.startswith("image/") if self.media_type else known


@dataclass(frozen=True, kw_only=True)
class SourceItem:
    """What an Item says of a scene."""

    href: str
    """Where it was read, absolute."""

    times: Mapping[str, datetime]
    """Those of ``datetime``, ``start_datetime`` and ``end_datetime`` that it has, with zones."""

    assets: tuple[ItemAsset, ...]
    """Its files."""

    def images(self, names: Sequence[str]) -> tuple[ItemAsset, ...]:
        """Return the asset that is the image, or those that are its bands.

        Without names it is the asset that shows red, green and blue, or three assets that show
        one each; those with the role ``data`` win over others, and GeoTIFFs over other formats.
        Where no band is named anywhere, it is the only image.

        Args:
            names: The assets that the user chose.

        Raises:
            InputError: There is no asset of that name.
            DataError: The Item does not say which they are.
        """
        if names:
            return tuple(self._named(name) for name in names)
        images = [asset for asset in self.assets if asset.is_image]
        data = [asset for asset in images if "data" in asset.roles]
        tiffs = [asset for asset in data if asset.media_type.startswith("image/tiff")]
        for pool in (tiffs, data, images):
            if found := _coloured(pool):
                return found
        if len(images) == 1:
            return (images[0],)
        told = f"the images {_listed(images)}" if images else "no image among its assets"
        raise DataError(
            found=f"{self.href} has {told}",
            expected="one that shows red, green and blue, or one for each",
            fix="Name it with --asset NAME, or give --asset once for each band",
        )

    def _named(self, name: str) -> ItemAsset:
        for asset in self.assets:
            if asset.name == name:
                return asset
        raise InputError(
            found=f"--asset {name} for {self.href}", expected=f"one of {_listed(self.assets)}"
        )


@dataclass(frozen=True)
class DescribedScene:
    """What an Item says of a scene."""

    item: SourceItem
    """The Item."""

    images: tuple[ItemAsset, ...]
    """The asset that is the image, or those that are its bands."""

    @property
    def nodata(self) -> float | None:
        """The value without data in all of the images, if the Item names one."""
        found = {image.nodata for image in self.images}
        return found.pop() if len(found) == 1 else None

    def meanings(self, found: tuple[str | None, ...]) -> tuple[str | None, ...]:
        """Return what the bands show: what the Item says of any of them, else what the file does.

        Args:
            found: What the file says of its bands.

        Raises:
            DataError: The Item lists more bands than the file has.
        """
        first = self.images[0]
        if len(self.images) > 1:
            named = tuple(each.meanings[0] if each.meanings else None for each in self.images)
        else:
            named = first.meanings
        if not any(named):
            return found
        if len(named) > len(found):
            raise DataError(
                found=f"{self.item.href} lists {len(named)} bands of the asset {first.name}, "
                f"whose file has {len(found)}",
                expected="as many",
                fix=f"Give the file itself and --bands: --src {first.href}",
            )
        return (*named, *(name if name == ALPHA else None for name in found[len(named) :]))


def described_scene(path: str, assets: tuple[str, ...]) -> DescribedScene | None:
    """Read what is said of a scene that is given as an Item; None for any other file.

    Raises:
        InputError: There is no such Item or asset, or assets are named of what is no Item.
        DataError, MissingDependencyError: As ``read_item`` and ``SourceItem.images``.
    """
    if is_item(path):
        item = read_item(path)
        return DescribedScene(item, item.images(assets))
    if assets:
        raise InputError(
            found=f"--asset {assets[0]} for {path}",
            expected="a STAC Item, whose name ends in .json",
        )
    return None


def is_item(path: str) -> bool:
    """Tell by its name whether a path or address means a STAC document, and no raster."""
    address = urlsplit(path)
    if address.scheme in {"http", "https"}:
        return bool(address.path.endswith(_ENDINGS) or _IN_AN_API.search(address.path))
    return "://" not in path and path.lower().endswith(_ENDINGS)


def read_item(path: str) -> SourceItem:
    """Read a STAC Item, local or from the web.

    Args:
        path: A file, or an address that begins with ``http``.

    Raises:
        InputError: There is no such file.
        DataError: It is no Item, or cannot be fetched.
        MissingDependencyError: pystac is not installed.
    """
    try:
        import pystac  # noqa: PLC0415 - an extra
        from pystac.utils import make_absolute_href  # noqa: PLC0415
    except ImportError as error:
        raise missing_pystac("a STAC Item") from error
    if "://" not in path and not Path(path).exists():
        raise InputError(found=f"{path} does not exist", expected="a STAC Item")
    try:
        item = pystac.Item.from_file(path)
        times = {
            "datetime": item.datetime,
            "start_datetime": item.common_metadata.start_datetime,
            "end_datetime": item.common_metadata.end_datetime,
        }
    except Exception as error:  # pystac raises plain ones where an address does not answer
        raise DataError(
            found=f"{path} cannot be read as a STAC Item ({type(error).__name__})",
            expected="the JSON of one Item; of a Collection give its Items",
        ) from error
    href = make_absolute_href(path)
    assets = {
        # Not through the Item's own link: one that was downloaded with its files names its origin.
        name: _place(make_absolute_href(asset.href, href))
        for name, asset in item.assets.items()
    }
    return SourceItem(
        href=href,
        times={key: _zoned(moment) for key, moment in times.items() if moment},
        assets=tuple(
            ItemAsset(
                name=name,
                href=assets[name],
                meanings=_meanings(name, asset.extra_fields),
                roles=frozenset(asset.roles or ()),
                media_type=asset.media_type or "",
                nodata=_nodata(asset.extra_fields),
            )
            for name, asset in item.assets.items()
        ),
    )


def missing_pystac(what: str) -> MissingDependencyError:
    """Return the error for something that needs pystac."""
    return MissingDependencyError(
        found=f"{what} needs the library pystac, which is not installed",
        fix="Install it with: pip install 'earthgate-geo[stac]'",
    )


def _place(href: str) -> str:
    """Return what GDAL opens of an absolute href, whose characters may be written as in URLs."""
    address = urlsplit(href)
    if address.scheme == "file":
        return url2pathname(address.path)
    if "://" in href:
        return quote(href, safe="%/:?#[]@!$&'()*+,;=~")
    plain = unquote(href)
    return plain if not Path(href).exists() and Path(plain).exists() else href


def _nodata(fields: Mapping[str, Any]) -> float | None:
    """Return the number without data of all bands; STAC also has words, as for NaN."""
    own = [{"nodata": fields.get("nodata")}]
    for bands in (fields.get("bands"), fields.get("raster:bands"), own):
        named = {band.get("nodata") for band in bands or ()} - {None}
        if named:
            value = named.pop()
            return value if not named and isinstance(value, int | float) else None
    return None


def _zoned(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _coloured(pool: Sequence[ItemAsset]) -> tuple[ItemAsset, ...]:
    """Return the one asset of all colours, or the one asset of each; none if it is not clear."""
    whole = [asset for asset in pool if set(RGB) <= set(asset.meanings)]
    if whole:
        return tuple(whole) if len(whole) == 1 else ()
    single = [[asset for asset in pool if asset.meanings == (colour,)] for colour in RGB]
    return tuple(found[0] for found in single) if all(len(s) == 1 for s in single) else ()


def _meanings(name: str, fields: Mapping[str, Any]) -> tuple[str | None, ...]:
    for key in _BAND_LISTS:
        found = tuple(_meaning(band) for band in fields.get(key) or ())
        if any(found):
            return found
    word = described_band(name)
    return (word,) if word else ()


def _meaning(band: Mapping[str, Any]) -> str | None:
    common = band.get("eo:common_name") or band.get("common_name")
    return str(common) if common else described_band(band.get("name"))


def _listed(assets: Sequence[ItemAsset]) -> str:
    return ", ".join(asset.name for asset in assets)
