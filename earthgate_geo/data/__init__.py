"""Scenes, tiles, labels and generated scenes: the TorchGeo side."""
