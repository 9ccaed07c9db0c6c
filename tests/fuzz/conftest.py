"""What pytest leaves alone here: doctests would import it, and it has to be imported by atheris."""

collect_ignore = ["fuzz_models.py"]
