"""Penalties of a whole model: many tensors, rules by name, one native call.

Contract
--------
- Tensors are read from the mapping (or sequence) at every call; strengths too.
- Rules are globs over names (``fnmatch.fnmatchcase``), or a name itself, brackets and all.  The
  first that matches wins, what none matches is left alone, and a rule that never wins is an error.
- Tied tensors (same device, lowest address, dtype and set of elements, so a transpose as well)
  count once, under the first name.
- All or nothing: everything is checked, and every callable has run, before anything is written.
- The total is the canonical sum of the tensors' penalties in mapping order.  A tensor without a
  rule takes no place in it; one whose strengths are 0 does, so that a schedule through 0 does not
  change the order of the sum.

A call goes through ``names`` and ``rules``, then ``plan``, then ``evaluation``, ``proximal`` or
``report``;
``attached`` is in front.
"""

from __future__ import annotations

from .attached import Penalties, attach
from .proximal import ProxRecord
from .report import Report, ReportRow

__all__ = ["Penalties", "ProxRecord", "Report", "ReportRow", "attach"]

# Pickles and messages name a class by its module: by this one, whichever file holds the class.
for _class in (Penalties, ProxRecord, Report, ReportRow):
    _class.__module__ = __name__
del _class
