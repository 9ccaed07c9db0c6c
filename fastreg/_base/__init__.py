"""What all floors above stand on: errors, dtypes, memory, arguments; NumPy and no framework."""
