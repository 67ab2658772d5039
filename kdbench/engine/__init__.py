"""Training: the only folder that imports mmengine.

Read ``work.py`` (what a worker is told to do), ``cohort.py`` (students in lockstep behind one teacher), ``cell.py`` (one
student with its method, optimiser and random stream), ``runner.py`` (mmengine's runner, its loops and hooks),
``optim.py`` (timm's optimisers and schedules), ``checkpoint.py`` (files that load without running code), ``teacher.py``.
"""
