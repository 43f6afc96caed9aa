"""Whole jobs: paths in, files and a result document out."""
