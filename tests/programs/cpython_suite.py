"""Runs tests of CPython's own suite and says in a line of JSON each how it ended.

usage: cpython_suite.py [-NAME]… TEST… (a module, a class or a test, as unittest names them; no test that ends with NAME)
"""
import faulthandler
import json
import sys
import unittest

from test import support

# Longer than any test takes; one that hangs ends the run, with every thread's traceback.
LIMIT_S = 60

class Result(unittest.TestResult):
    def startTest(self, test):
        super().startTest(test)
        faulthandler.dump_traceback_later(LIMIT_S, exit=True)
        self.outcome = "ok"

    def ended(self, test, how, why):
        # The first end counts: what follows are its consequences.
        if self.outcome == "ok":
            self.outcome = f"{how}: {why}"

    def addError(self, test, error):
        super().addError(test, error)
        self.ended(test, "error", error[0].__name__)
        print(f"{test}\n{self.errors[-1][1]}", file=sys.stderr)

    def addFailure(self, test, error):
        super().addFailure(test, error)
        self.ended(test, "failure", error[0].__name__)
        print(f"{test}\n{self.failures[-1][1]}", file=sys.stderr)

    def addSubTest(self, test, subtest, error):
        super().addSubTest(test, subtest, error)
        if error:
            self.ended(test, "failure", error[0].__name__)
            print(f"{subtest}\n{error}", file=sys.stderr)

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        self.ended(test, "skipped", reason)

    def addUnexpectedSuccess(self, test):
        super().addUnexpectedSuccess(test)
        self.ended(test, "failure", "unexpected success")

    def stopTest(self, test):
        super().stopTest(test)
        faulthandler.cancel_dump_traceback_later()
        print(json.dumps({"test": test.id(), "outcome": self.outcome}), flush=True)


def chosen(suite):
    """The suite's tests but for those that are left out."""
    if isinstance(suite, unittest.TestCase):
        return [] if suite.id().endswith(left_out) else [suite]
    return [test for part in suite for test in chosen(part)]


left_out = tuple(word[1:] for word in sys.argv[1:] if word.startswith("-"))
names = [word for word in sys.argv[1:] if not word.startswith("-")]
# Nothing beyond this host, and nothing that takes minutes.
support.use_resources = []
unittest.TestSuite(chosen(unittest.defaultTestLoader.loadTestsFromNames(names))).run(Result())
