"""The checks that a method must pass: ``kdbench test``, and ``check_method`` for tests of your own.

Read ``findings`` (what a check reports), ``bench`` (the nets, batches and steps that methods are tried on), then the
checks: ``building`` (what is declared, how it is built), ``checks`` (how it behaves), ``watch`` (what a step must leave
alone), ``settings`` (hyper-parameters). ``inspector`` runs all of them on one method.
"""

from kdbench.conformance.findings import CHECKS, Examination, Failure, Skip
from kdbench.conformance.inspector import check_method, examine

__all__ = ["CHECKS", "Examination", "Failure", "Skip", "check_method", "examine"]
