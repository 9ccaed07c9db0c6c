"""Scripts are no modules for doctests: importing them would choose Keras' backend here."""

collect_ignore = ["keras_cases.py", "proximal_cases.py", "saved_program.py"]
