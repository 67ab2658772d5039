"""Nets seen through four stages.

In reading order: ``models`` (a model from timm, torchvision, transformers or a user's file), ``families`` (CNN, ViT or MLP),
``taps`` (where a net is tapped, and what its modules put out as maps), ``attention`` (of ViTs), ``heads`` (from features to
logits, compared with the net's own forward), ``tapped`` (a net that hands out its stages, embedding and logits), ``meta``
(building without memory), ``ensemble`` (several as one teacher), ``stagewise`` (running a net stage by stage), ``small``,
``swin_small`` and ``classic`` (nets that timm does not have: for 32 px images, the small Swins of OFA-KD's tables, and the
classic CIFAR nets), ``cost`` (what a net costs at inference).
"""
