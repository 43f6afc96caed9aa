"""Frozen backbones, heads and the segmenter they make."""
