"""From a suite to the cells of a run. Only ``check``, and functions of ``devices``, import torch.

In reading order: ``request`` (what the user asks for), ``devices`` (what ``--device`` names), ``settings`` (what a method's
hyper-parameters are) and ``found`` (those that a search found), ``cells`` (the cells of a plan, and cohorts of them), ``teachers``
(their teachers), ``identity`` (the hash of everything that a result depends on), ``check`` (which cells can run).
"""
