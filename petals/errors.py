"""The one exception that carries a message meant for the person at the keyboard."""


class PetalsError(Exception):
    """A mistake in the input or the settings, said in one line: what, where, how to mend it.

    The library raises it and the stages print it without a traceback.
    """
