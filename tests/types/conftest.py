"""The programs of users are no tests: test_types.py runs them."""

collect_ignore_glob = ["client_*.py", "misuse.py"]
