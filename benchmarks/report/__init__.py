"""Benchmark results as data, tables and pictures; what README and docs quote is made from these."""

from benchmarks.report.compare import Change, changes
from benchmarks.report.record import Results, Row, load, merged, save

__all__ = ["Change", "Results", "Row", "changes", "load", "merged", "save"]
