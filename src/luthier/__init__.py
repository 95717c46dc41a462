"""Luthier: take a language model through its whole working life on your own machines."""

__version__ = "0.1.0"
