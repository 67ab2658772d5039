"""Training: the only folder that imports mmengine.

What a worker does: ``train`` (teachers and cohorts), ``prepare_teacher`` (weights that teachers come with), ``groups``
(trainings on one data set, in groups that fit into memory).
The training loop: ``cohort`` (students in lockstep behind one teacher), ``shared`` (what they share in a step), ``cell`` (one
student with its method, optimiser and random stream), ``meters``, ``evaluation`` (metrics, rows of histories), ``saver`` and
``checkpoint`` (when checkpoints are written, and how), ``record`` (what is kept of a trained cell).
mmengine: ``runner``, ``hooks`` (of users), ``trackers`` (TensorBoard and others), ``optim``.
Teachers: ``teacher``.
How it runs: ``precision``, ``numerics`` (TF32, deterministic kernels), ``micro_batches``, ``compiled``, ``graphs`` and ``recorder`` (CUDA
graphs), ``parallel`` (several processes), ``process``.
What goes wrong: ``faults`` (what an exception means), ``fate`` (of several processes when one of them fails).
"""
