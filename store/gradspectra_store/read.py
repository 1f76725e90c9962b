"""The door to everything read back: series, times, layer values, layers and spectra over a range of steps."""

from gradspectra_store.layer_tables import layer_count, layer_list
from gradspectra_store.layer_values import read_layers
from gradspectra_store.recorded import read_recorded, read_recorded_layers
from gradspectra_store.retired import layers_left, spectra_left
from gradspectra_store.series import read_series, series_names
from gradspectra_store.spectra import find_spectra, read_spectra
from gradspectra_store.times import elapsed, read_times

__all__ = [
    "elapsed",
    "find_spectra",
    "layer_count",
    "layer_list",
    "layers_left",
    "read_layers",
    "read_recorded",
    "read_recorded_layers",
    "read_series",
    "read_spectra",
    "read_times",
    "series_names",
    "spectra_left",
]
