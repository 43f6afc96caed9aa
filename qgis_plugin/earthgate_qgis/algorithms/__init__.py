"""The algorithms, one a file."""

from earthgate_qgis.algorithms.adapt import AdaptAlgorithm
from earthgate_qgis.algorithms.evaluate import EvaluateAlgorithm
from earthgate_qgis.algorithms.map import MapAlgorithm
from earthgate_qgis.algorithms.vectorize import VectorizeAlgorithm

ALGORITHMS = (AdaptAlgorithm, MapAlgorithm, VectorizeAlgorithm, EvaluateAlgorithm)
