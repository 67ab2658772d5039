"""Tables and leaderboards from a frame of results, one row per cell (``kdbench.load_results``). No torch in here.

In reading order: ``frame`` (checks the rows, means over seeds), ``caption`` (what stands under every figure), ``grid`` (a ``Table``
of typed cells), ``choices`` (an author's), ``table``, ``joined`` (several suites in one), ``ablation`` (one method's settings),
``statistics`` (intervals and tests over pairs), ``aggregates`` (over pairs and seeds), ``power`` (what a design can show), ``standing``,
``leaderboard`` (methods ranked), ``notes`` (what stands under it) and ``hours`` (at equal hours), ``figures`` (published ones;
names in ``aliases``, which figures in ``claims``, papers in ``references``), ``published`` (beside ours), ``prose``,
``differences`` (between two sets of results), ``costs`` (hours, memory, students at inference), ``paired`` (within one pair: seeds,
images), ``classes`` (by class and superclass), ``ranks`` (which methods the pairs cannot tell apart). Then ``text``, ``plots`` and
``html``.
"""
