"""The command line.

In reading order: ``parser`` (the verbs), ``options`` and ``values`` (what makes a request), ``console`` (how kdbench talks), then the
verbs: ``listing``, ``plan``, ``run`` (with ``progress`` and ``replay``), ``tune``, ``status``, ``teachers``, ``tables`` (what the
verbs that show results share), ``table``, ``board``, ``differences``, ``export``, ``stores`` (merge, prune), ``submissions``,
``site``, ``methods``.
"""
