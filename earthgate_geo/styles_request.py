"""What ``earthgate styles build`` is asked to do, and the checks that need no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from earthgate_geo.errors import InputError
from earthgate_geo.request import check_outputs


@dataclass(frozen=True, kw_only=True)
class StylesRequest:
    """Gather the styles of a folder of images."""

    data: Path
    """Folder of rasters, also in the folders below."""

    out: Path
    """Bank of styles to write."""

    limit: int = 2000
    """Most parts of images to look at."""

    bands: Mapping[str, int] | None = None
    """1-based file band of ``red``, ``green`` and ``blue``."""

    predictor: Path | None = None
    """Published network that measures styles; without, statistics of colours and spectrum do."""

    transformer: Path | None = None
    """Published network that puts them on images."""

    seed: int = 0
    """Of the choice of parts."""

    overwrite: bool = False
    """Whether an existing bank may be replaced."""

    def inputs(self) -> list[Path]:
        """Return the files that are read and must not be written."""
        return [path for path in (self.predictor, self.transformer) if path]

    def outputs(self) -> dict[str, Path]:
        """Return the files to write, by role."""
        return {"styles": self.out}

    def check(self) -> None:
        """Refuse what cannot work, before torch is even loaded.

        Raises:
            OutputError: The bank exists or cannot be written.
            InputError: There is no such folder, or one of the networks comes without the other.
        """
        if not self.data.is_dir():
            raise InputError(found=f"{self.data} is not a folder", expected="a folder of images")
        if (self.predictor is None) != (self.transformer is None):
            raise InputError(
                found="one of --predictor and --transformer",
                expected="both, or neither for styles without networks",
            )
        inputs = list(map(str, self.inputs()))
        check_outputs(self.outputs(), overwrite=self.overwrite, inputs=inputs)
