"""What ``earthgate export`` is asked to do, and the checks that need no torch."""

from dataclasses import dataclass
from pathlib import Path

from earthgate_geo.errors import InputError
from earthgate_geo.request import check_outputs


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """Write a model for other programs."""

    onnx: Path
    """ONNX file to write."""

    model: str | None = None
    """Model or adapter by file or name; the packaged model without."""

    model_folder: Path | None = None
    """Further folder in which names are looked up."""

    tile_px: int | None = None
    """Height and width of the images that it will take; None is the model's own."""

    overwrite: bool = False
    """Whether an existing file may be replaced."""

    @property
    def model_folders(self) -> tuple[Path, ...]:
        """Folders in which names of models are looked up, after the packaged ones."""
        return () if self.model_folder is None else (self.model_folder,)

    def inputs(self) -> list[str]:
        """Return the files that are read and must not be written."""
        return [self.model] if self.model else []

    def outputs(self) -> dict[str, Path]:
        """Return the files to write, by role."""
        return {"onnx": self.onnx}

    def check(self) -> None:
        """Refuse what cannot work, before torch is even loaded.

        Raises:
            OutputError: The file exists, cannot be written, or does not end in .onnx.
            InputError: The tile has no pixels.
        """
        if self.tile_px is not None and self.tile_px < 1:
            raise InputError(found=f"--tile {self.tile_px}", expected="1 or more pixels")
        check_outputs(self.outputs(), overwrite=self.overwrite, inputs=self.inputs())
