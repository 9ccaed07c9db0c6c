"""Laid beside the package in a build directory: its tests import that package and no other.

PYTHONPATH alone does not do it. An editable install puts a finder in front of the path, which would
give the tests the module that pip built, and not the one under test.
"""

import sys
from importlib.machinery import PathFinder
from pathlib import Path

HERE = str(Path(__file__).parent)


class BuildFinder:
    """Find the package in this directory."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        return (
            PathFinder.find_spec(name, path or [HERE]) if name.split(".")[0] == "fastreg" else None
        )


sys.meta_path.insert(0, BuildFinder)
