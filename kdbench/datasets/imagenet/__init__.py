"""ImageNet-1K in all its forms.

In reading order: ``imagenet`` (the data set, or a choice of its classes), ``layouts`` (its form on disk), ``shards`` with ``tarindex``
(tar archives), ``huggingface`` (Parquet and Arrow files), ``groundtruth`` (classes of a flat validation folder), ``wnids`` (the
classes).
"""
