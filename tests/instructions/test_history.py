"""What the chart over commits says of records."""

import json

import pytest
from history import cells_of, lines_of


def record(**counts):
    cells = {cell: {"64": count} for cell, count in counts.items()}
    return cells_of(json.dumps({"x86_64": {"avx2": {"instructions": cells}}}))


def test_means_are_of_each_cell_relative_to_its_first():
    records = [("a", record(x=100)), ("b", record(x=200, y=50)), ("c", record(x=400, y=50))]
    assert lines_of(records)["avx2, 64"] == pytest.approx([1.0, 2.0**0.5, 2.0])


def test_what_is_not_in_every_record_has_no_line():
    assert lines_of([("a", {}), ("b", record(x=1))]) == {}
