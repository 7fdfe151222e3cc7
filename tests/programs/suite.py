"""Runs tests of CPython's own suite by name, and writes how each ended into a file.

usage: suite.py RESULTS IGNORE NAME…      IGNORE: a regular expression for the ids of tests that are left out
"""
import json
import re
import signal
import sys
import unittest

# No test that works takes a half of it.
LIMIT_S = 20


def flat(suite):
    for one in suite:
        if isinstance(one, unittest.TestSuite):
            yield from flat(one)
        else:
            yield one


class Result(unittest.TextTestResult):
    """Remembers each test's end by its id; the first of several that is bad stays."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.ends = {}

    def startTest(self, test):
        super().startTest(test)
        signal.alarm(LIMIT_S)

    def stopTest(self, test):
        signal.alarm(0)
        super().stopTest(test)

    def note(self, test, end):
        if self.ends.get(test.id(), "ok") == "ok":
            self.ends[test.id()] = end

    def addSuccess(self, test):
        super().addSuccess(test)
        self.note(test, "ok")

    def addError(self, test, err):
        super().addError(test, err)
        self.note(test, "error")

    def addFailure(self, test, err):
        super().addFailure(test, err)
        self.note(test, "failure")

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        self.note(test, "skipped")

    def addExpectedFailure(self, test, err):
        super().addExpectedFailure(test, err)
        self.note(test, "expected failure")

    def addSubTest(self, test, subtest, err):
        super().addSubTest(test, subtest, err)
        if err is not None:
            self.note(test, "failure")


def give_up(signum, frame):
    raise TimeoutError("the test hangs")


signal.signal(signal.SIGALRM, give_up)
results, ignore = sys.argv[1], re.compile(sys.argv[2])
loaded = unittest.defaultTestLoader.loadTestsFromNames(sys.argv[3:])
chosen = unittest.TestSuite(test for test in flat(loaded) if not ignore.search(test.id()))
result = unittest.TextTestRunner(verbosity=2, resultclass=Result).run(chosen)
with open(results, "w", encoding="utf-8") as file:
    json.dump(result.ends, file)
