"""Benchmark results as data, tables and pictures; what README and docs quote is made from these."""

from latte_fast.results.compare import Change, changes
from latte_fast.results.record import Results, Row, load, merged, save

__all__ = ["Change", "Results", "Row", "changes", "load", "merged", "save"]
