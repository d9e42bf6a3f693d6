"""Prints the plurals of its arguments."""

import sys

from six import text_type

IRREGULAR = {"mouse": "mice", "child": "children", "ox": "oxen"}


def plural(noun):
    if noun in IRREGULAR:
        return IRREGULAR[noun]
    if noun.endswith(("s", "x", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2:-1] not in ("a", "e", "i", "o", "u"):
        return noun[:-1] + "ies"
    return noun + "s"


if __name__ == "__main__":
    for noun in sys.argv[1:]:
        print("one {}, two {}".format(text_type(noun), plural(noun)))
