"""The script of cases is no module for doctests: importing it would choose Keras' backend here."""

collect_ignore = ["keras_cases.py"]
