"""The life of a run: checkpoints, pictures, exports."""
