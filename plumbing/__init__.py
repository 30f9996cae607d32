"""What no reader of the science needs: a script reads without this folder."""
