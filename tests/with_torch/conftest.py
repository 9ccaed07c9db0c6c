"""What the tests of torch run in processes of their own has no tests itself."""

collect_ignore = ["sharding_worker.py"]
