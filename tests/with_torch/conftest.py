"""What the tests of torch run in processes of their own has no tests itself."""

collect_ignore = ["deepspeed_worker.py", "sharding_worker.py"]
