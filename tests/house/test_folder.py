"""The notebook's folder as a session sees it while it lives."""

from __future__ import annotations

import pytest

from bench.harness import Kernel

pytestmark = pytest.mark.gvisor

LIST = """%%modal card=off
import os
print(sorted(os.listdir('.')), sorted(os.listdir('parts')))
"""


def test_files_that_come_meanwhile_are_listed_and_imported(kernel: Kernel) -> None:
    kernel.check("import os; os.mkdir('parts'); open('parts/a.csv', 'w').close()")
    first = kernel.check(LIST).text
    assert "'parts'" in first and "['a.csv']" in first
    kernel.check("%%modal card=off\nopen('parts/mine.csv', 'w').write('1'); open('mine.txt', 'w').write('2')")
    assert "['a.csv', 'mine.csv']" in kernel.check(LIST).text
    kernel.check("open('late.csv', 'w').close(); open('parts/b.csv', 'w').close()")
    kernel.check("open('latemodule.py', 'w').write('answer = 42')")
    then = kernel.check(LIST).text
    assert "'late.csv'" in then and "['a.csv', 'b.csv', 'mine.csv']" in then, then
    assert ".cellburst-" not in then
    assert "42" in kernel.check("%%modal card=off\nimport latemodule\nprint(latemodule.answer)").text
