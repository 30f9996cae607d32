"""Networks and sets of images with which fid.py measures."""
