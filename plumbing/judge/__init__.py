"""What fid.py measures with: networks, and the sets of images that it compares."""
