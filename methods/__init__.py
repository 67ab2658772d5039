"""One file per distillation method; each registers its class, or its variants, with ``register_method``.

Start with ``scratch.py`` (no teacher), ``kd.py`` (logits) and ``fitnet.py`` (features); ``kdbench.method`` holds the contract.
"""
