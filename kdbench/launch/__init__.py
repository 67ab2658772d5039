"""Where cohorts run.

Read ``job.py`` (what a launcher is given, and the small interface that every launcher has), ``inprocess.py`` and
``local.py`` (two launchers), ``worker.py`` (the process of one job), ``remote.py`` with ``slurm.py`` and ``rays.py`` (two
engines for other machines), ``execute.py`` (a plan to jobs, jobs to a launcher, what happened to a summary).
"""
