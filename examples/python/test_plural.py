import unittest

from plural import plural


class Plural(unittest.TestCase):
    def test_endings(self):
        self.assertEqual([plural(noun) for noun in ("fox", "city", "day", "ox")], ["foxes", "cities", "days", "oxen"])
