"""Every figure of report/ and where it comes from: measure.py and bench.py."""
