"""What a step, a layer, a spectrum and an alert are, the arithmetic on them, and their form on the wire."""

__version__ = "0.1.0"
