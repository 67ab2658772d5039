"""Trained students, to be taken away.

In reading order: ``student`` (an exported student, ready to predict), ``export`` (from a cell's folder to a folder of its own),
``onnx`` (the same as one graph).
"""
