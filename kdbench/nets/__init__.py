"""Nets from timm, seen through four stages.

In reading order: ``tapped`` (a net that hands out its stages, embedding and logits), ``stagewise`` (running a net stage by stage),
``small``, ``swin_small`` and ``classic`` (nets that timm does not have: for 32 px images, the small Swins of OFA-KD's tables, and the
classic CIFAR nets), ``cost`` (what a net costs at inference).
"""
