"""Training loops of others: each file needs torch and the library that it is named after."""

import pytest


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    import torch  # where it is missing, no test gets here

    torch.set_num_threads(1)
