"""Where jobs run.

In reading order: ``job`` (what a launcher is given, and the interface that every launcher has), ``inprocess`` and ``local`` (two
launchers), ``mps`` (workers that share
a GPU), ``worker`` (the process of one job), ``remote`` with ``slurm`` and ``ray`` (other machines), ``torchrun`` (several
processes for one job), ``execute`` (a plan to jobs, jobs to a launcher, results to a summary), ``choose`` (from a request to a
launcher).
"""
