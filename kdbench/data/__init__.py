"""Data sets and the pipelines that turn them into batches.

``catalog.py`` lists the data sets (works without torch); ``images.py`` says what a loaded data set is; ``digits.py`` and
``cifar100.py`` load one each, ``download.py`` fetches files; ``pipeline.py`` makes training batches on the device.
"""
