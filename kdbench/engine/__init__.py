"""Training: the only folder that imports mmengine.

Read ``work.py`` (what a worker is told to do), ``session.py`` (trainees on one data set, in groups that fit into memory),
``cohort.py`` (students in lockstep behind one teacher), ``cell.py`` (one student with its method, optimiser and random stream),
``runner.py`` (mmengine's runner, its loops and hooks), ``record.py`` (what is kept of a trained cell). Beside them: ``prepare.py``
and ``teacher.py`` (teachers), ``optim.py``, ``precision.py``, ``parts.py`` (optimisers, fewer bits, parts of a batch), ``parallel.py``
(several processes), ``checkpoint.py``, ``memory.py``, ``teachercache.py``, ``tuned.py``, ``probe.py``.
"""
