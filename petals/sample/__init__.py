"""Rendered flowers: a data set of any size in the competition's layout, the same to the byte everywhere.

kinds says how each kind looks, forms builds its bloom out of petals, canvas paints, picture makes a photograph
of it, dataset writes the records. Run as `python -m petals.sample OUT`.
"""
