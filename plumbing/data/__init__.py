"""Any images or text as one tensor."""
