"""torch_cases.py puts a module in the place of torch: nobody but test_torch.py runs it."""

import os

if "FAKE_TORCH_TABLE" not in os.environ:
    collect_ignore = ["torch_cases.py"]
