"""The slow, the exhaustive and the faulty: `python -m pytest tests`; ../test_all.py is for a person who waits."""
