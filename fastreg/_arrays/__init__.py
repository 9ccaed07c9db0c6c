"""Whose array it is: views of foreign memory, and results in the kind of their input.

No framework is imported here: an object of a framework exists only where its module is loaded.
"""
