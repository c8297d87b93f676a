"""analognoise: a simulator of analog in-memory computing."""

__version__ = "0.1.0"
