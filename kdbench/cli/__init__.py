"""The command line.

In reading order: ``parser`` (the verbs), ``options`` and ``values`` (what makes a request), ``console`` (how kdbench talks), then the
verbs: ``listing``, ``plan``, ``run`` (with ``progress`` and ``replay``), ``status``, ``teachers``, ``tables``, ``stores``, ``methods``.
"""
