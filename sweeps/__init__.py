"""Sweeps: which jobs a command has, which are done, how long the rest may take, and what is said at the end."""
