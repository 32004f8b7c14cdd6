"""The launcher as a library: run directories, processes, their supervision, and what the command line shows."""
