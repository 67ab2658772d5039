"""What a run will cost, before it starts.

In reading order: ``time`` (seconds of teachers and cohorts), ``probe`` (a few timed steps), ``memory`` (bytes of a cohort, from a step
without data), ``fit`` (cohorts split until they fit into memory and occupy every worker),
``profiles`` (hours on GPUs that are not here).
"""
