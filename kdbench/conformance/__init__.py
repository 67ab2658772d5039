"""The checks that a method must pass: ``kdbench test``, and ``check_method`` for tests of your own.

Read ``findings`` (what a check reports), ``bench`` (the nets, batches and steps that methods are tried on), ``checks`` and
``settings`` (the checks, the second those of hyper-parameters), ``watch`` (what a step must leave alone), ``inspector``
(all checks of one method), ``show`` (the command).
"""

from kdbench.conformance.inspector import check_method, examine
from kdbench.conformance.findings import CHECKS, Examination, Failure, Skip

__all__ = ["CHECKS", "Examination", "Failure", "Skip", "check_method", "examine"]
