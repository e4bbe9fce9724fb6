"""What a change did to the model, told in markdown from two revisions of git, with nothing pulled.

revisions   reads files of a revision out of git
sides       parses the files that git keeps of a run: scores, predictions, settings, lock, curves
statistics  macro F1, its bootstrap interval, McNemar's test
comparison  the two sides' predictions, image by image
scores, changes, classes, curves    the sections, each a list of `markdown.Section`
page        the whole page, fitted into what a comment may hold
"""
