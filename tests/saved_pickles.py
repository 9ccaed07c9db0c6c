"""The pickles among the fixtures: see ``fixtures/make_fixtures.py``."""

import base64
import json
import pickle
from pathlib import Path

FIXTURES = Path(__file__).with_name("fixtures")
PROTOCOLS = ("2", "3", "4", "5")


def unpickled(file, name, protocol):
    """Load one object of a file of pickles."""
    saved = json.loads((FIXTURES / file).read_text(encoding="ascii"))
    return pickle.loads(base64.b64decode(saved[name][protocol]))
