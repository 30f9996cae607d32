"""The process and the machine: how it begins and ends, files, torchrun, flags, hardware."""
