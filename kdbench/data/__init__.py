"""Data sets and the pipelines that turn them into batches.

``catalog.py`` lists the data sets (works without torch); ``images.py`` says what a loaded data set is; ``digits.py`` loads
one; ``pipeline.py`` makes training batches on the device.
"""
