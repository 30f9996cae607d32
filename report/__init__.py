"""Every figure of report/README.md and where it comes from: measure.py and bench.py."""
