"""Shared by all other folders: errors, dtypes, memory, arguments; NumPy and no framework."""
