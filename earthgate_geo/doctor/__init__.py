"""Is this installation sound? Each check says what was found and how to mend it."""

from earthgate_geo.doctor.diagnosis import diagnose

__all__ = ["diagnose"]
