"""From loaded images to batches.

In reading order: ``images`` (what a loaded data set is), ``pipeline`` (which of the two kinds of training batches a recipe gets),
``batches`` (what a batch is), ``order`` (the order of an epoch); ``device`` (batches made on the device), with ``augment``,
``mixing`` and ``resample``; ``exact`` (batches as timm makes them), with ``transforms`` and ``loader`` (loader processes); ``views``
(what a net sees in evaluation).
"""
