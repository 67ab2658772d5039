"""Nets from timm, seen through four stages.

Read ``spec.py`` (what names a net), ``zoo.py`` (the nets that suites may use by a short name), ``tapped.py`` (a net that
hands out its stages, embedding and logits), ``small.py`` (nets for 32 px images), ``stagewise.py`` (running a net stage
by stage). Only ``spec.py`` and ``zoo.py`` work without torch.
"""
