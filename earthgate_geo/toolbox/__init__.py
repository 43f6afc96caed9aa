"""Trainable side paths of a frozen transformer."""
