"""The search for better settings: python -m petals.tune. Optuna proposes, DVC's queue runs, git keeps.

Proposals come from the tree-structured Parzen estimator (Bergstra et al., Algorithms for Hyper-Parameter
Optimization, NeurIPS 2011); a trial whose curve runs below the median of those before it is given up (the median
stopping rule of Golovin et al., Google Vizier, KDD 2017).
"""
