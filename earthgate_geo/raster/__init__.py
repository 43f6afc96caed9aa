"""Georeferenced pixels on disk: numpy and rasterio, no torch."""
