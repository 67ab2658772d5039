"""Where cohorts run.

Read ``job.py`` (what a launcher is given, and the small interface that every launcher has), ``inprocess.py`` and
``local.py`` (two launchers), ``worker.py`` (the process that ``local.py`` starts), ``execute.py`` (a plan to jobs, jobs to a
launcher, what happened to a summary).
"""
