"""From loaded images to batches.

In reading order: ``images`` (a loaded data set), ``pipeline`` (which of the two kinds of training batches a recipe gets),
``batches`` (what a batch and a pipeline are), ``order`` (the order of an epoch); ``device`` (batches made on the device), with ``augment``,
``mixing`` and ``resample``; ``exact`` (batches as timm makes them), with ``transforms`` and ``loader`` (loader processes); ``views``
(what a net sees in evaluation), ``hostmemory``.
"""
