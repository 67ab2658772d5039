"""Suites: what is trained, as typed objects that refuse what contradicts itself. Nothing here imports torch.

In reading order: ``suite`` (a suite file), ``protocol`` (how much of it is run, and which methods), ``recipe`` (how nets are
trained), ``net`` and ``zoo`` (which nets), ``dataset`` and ``datasets`` (which data, and the data sets by name), ``classlists``
(choices of classes with a name), ``schema`` (the JSON Schema of a file, and what docstrings say of its fields), ``types`` and
``problems`` (what these share: types of values, and where in a file a problem lies).
"""
