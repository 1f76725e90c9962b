"""Alert rules as streaming detectors with a small state that is saved with the run."""

from gradspectra_core.detectors.detector_set import ALL_RULES, LOCAL_RULES, DetectorSet, default_thresholds
from gradspectra_core.detectors.observation import LayerObservation, Observation

__all__ = ["ALL_RULES", "LOCAL_RULES", "DetectorSet", "LayerObservation", "Observation", "default_thresholds"]
