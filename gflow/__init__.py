"""gflow: many different good candidates under conflicting goals."""

__version__ = "0.1.0"
