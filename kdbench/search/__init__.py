"""A search of hyper-parameters: equal budgets, trials as rows of one run. Works without torch.

In reading order: ``space`` (what is searched), ``sampling`` (which values a trial has), ``trials`` (trials, their scores, the best, and
the file that holds it).
"""
