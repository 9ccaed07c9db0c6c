"""What the tests of torch run in processes of their own has no tests itself."""

collect_ignore = [
    "activity_worker.py",
    "agreement_worker.py",
    "deepspeed_worker.py",
    "lost_worker.py",
    "optimizers_worker.py",
    "sharding_worker.py",
]
