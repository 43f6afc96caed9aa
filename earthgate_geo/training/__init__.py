"""Adaptation of a scene and training of a source model."""
