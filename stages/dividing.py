"""The option with which several machines divide a stage."""

import click

from petals.parts import Part, part


class PartType(click.ParamType):
    name = "I/N"

    def convert(self, value: object, param: click.Parameter | None, context: click.Context | None) -> Part:
        try:
            return value if isinstance(value, Part) else part(value)
        except ValueError as error:
            self.fail(f"{value!r} {error}", param, context)


def part_option():
    """The option --part of a stage that several machines may divide."""
    return click.option(
        "--part",
        type=PartType(),
        help="Make only this part, I of N, beside the output. Without it, parts that are there are joined.",
    )
