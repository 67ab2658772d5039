"""Training: the only folder that imports mmengine.

Read ``train.py`` (what a worker is told to do), ``groups.py`` (trainings on one data set, in groups that fit into memory),
``cohort.py`` (the training loop: students in lockstep behind one teacher), ``cell.py`` (one student with its method, optimiser
and random stream), ``meters.py``, ``evaluation.py`` (metrics, rows of histories), ``saver.py`` and ``checkpoint.py`` (when
checkpoints are written, and how), ``record.py`` (what is kept of a trained cell). mmengine: ``runner.py``, ``hooks.py`` (of
users), ``trackers.py`` (TensorBoard and others). Beside them: ``prepare_teacher.py`` and ``teacher.py``, ``optim.py``,
``precision.py``, ``micro_batches.py``, ``parallel.py`` (several processes), ``teachercache.py``, ``graphs.py`` (CUDA graphs),
``compiled.py``, ``tuning.py``, ``process.py``.
"""
