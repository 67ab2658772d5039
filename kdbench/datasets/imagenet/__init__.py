"""ImageNet-1K in the forms in which it lies on disks.

In reading order: ``imagenet`` (the data set, or a choice of its classes), ``layouts`` (which form is there), ``shards`` with ``tarindex``
(tar archives), ``huggingface`` (Parquet and Arrow files), ``groundtruth`` (classes of a flat validation folder), ``wnids`` (the
classes).
"""
