"""Algorithmic stability of the recovery: how much the recovered model owes to single examples it was trained on.

Not the stability of a pruning event (`evaluation.stability`), which is about the moment of the cut.
"""
