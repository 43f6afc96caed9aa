"""The settings of the papers and ours: what they hold, what lies on disk, and their runs."""
