"""Views of the memory of foreign arrays, and results as the array type of their input.

No framework is imported here: an object of a framework exists only where its module is loaded.
"""
