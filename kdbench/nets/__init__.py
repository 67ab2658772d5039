"""Nets from timm, seen through four stages.

In reading order: ``tapped`` (a net that hands out its stages, embedding and logits), ``stagewise`` (running a net stage by stage),
``small`` and ``swin_small`` (nets that timm does not have: for 32 px images, and the small Swins of OFA-KD's tables), ``cost`` (what a
net costs at inference).
"""
