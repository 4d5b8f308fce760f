"""The table of cells that must show under `%%modal` what they show in a plain local kernel.

Each row: id, source, and what the front end answers to input() in order. Sources are independent of each other, and
every row is run in both kernels in the same order, so that execution counts agree too.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """One row: `answers` are typed at prompts, `fronts` says that the front end changes a widget while the cell runs."""

    id: str
    source: str
    answers: tuple[str, ...] = ()
    widget_value: int | None = None
    subshell: bool = True


CELLS = [
    # streams
    Cell("print", "print('hello')"),
    Cell("print_many", "for i in range(100):\n    print(i, i * i)"),
    Cell("stderr", "import sys\nprint('to stderr', file=sys.stderr)"),
    Cell("both_streams", "import sys\nprint('out')\nprint('err', file=sys.stderr)"),
    Cell("no_newline", "import sys\nsys.stdout.write('abc')\nsys.stdout.write('def')\nNone"),
    Cell("carriage_return", "for i in range(5):\n    print(f'\\r{i}/4', end='')\nprint()"),
    Cell("ansi", "print('\\x1b[31mred\\x1b[0m plain')"),
    Cell("unicode", "print('naïve – 雪 – 🎉 – \\u202eabc')"),
    Cell("flush", "print('a', end='', flush=True)\nprint('b', flush=True)"),
    Cell("long_line", "print('x' * 200_000)"),
    Cell("logging", "import logging\nlogging.warning('careful')"),
    Cell("warning", "import warnings\nwarnings.warn('old thing', DeprecationWarning, stacklevel=1)\nwarnings.warn('look', UserWarning)"),
    Cell("redirect", "import contextlib, io\nb = io.StringIO()\nwith contextlib.redirect_stdout(b):\n    print('hidden')\nprint(len(b.getvalue()))"),
    Cell("print_exc", "import traceback\ntry:\n    1 / 0\nexcept ZeroDivisionError as e:\n    print(type(e).__name__, e)"),
    Cell("pprint", "from pprint import pprint\npprint({'b': list(range(30)), 'a': {'x': 1}})"),
    # results
    Cell("result_int", "6 * 7"),
    Cell("result_str", "'text with \\'quotes\\''"),
    Cell("result_none", "None"),
    Cell("result_suppressed", "6 * 7;"),
    Cell("result_after_print", "print('first')\n[1, 2, 3]"),
    Cell("result_long_list", "list(range(2000))"),
    Cell("result_dict", "{'a': [1, 2], 'b': {'c': (1,)}}"),
    Cell("result_class", "class Thing:\n    def __repr__(self):\n        return 'a Thing'\nThing()"),
    Cell("result_dataclass", "from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\n    y: int = 2\nP(1)"),
    Cell("result_html_repr", "class H:\n    def _repr_html_(self):\n        return '<b>bold</b>'\n    def __repr__(self):\n        return 'H'\nH()"),
    Cell("result_mimebundle", "class M:\n    def _repr_mimebundle_(self, include=None, exclude=None):\n        return {'text/plain': 'm', 'application/x-own': {'a': 1}}, {'application/x-own': {'k': 2}}\nM()"),
    Cell("ipython_display", "class D:\n    def _ipython_display_(self):\n        print('shown by itself')\nD()"),
    Cell("result_numpy", "import numpy as np\nnp.arange(12).reshape(3, 4) / 7"),
    Cell("result_dataframe", "import pandas as pd\npd.DataFrame({'a': [1, 2, 3], 'b': ['x', 'y', 'z']})"),
    Cell("result_series", "import pandas as pd\npd.Series([1.5, 2.5], name='s')"),
    Cell("underscore", "print(_ if False else 'ok')"),
    # displays
    Cell("display", "display('one', 2, [3])"),
    Cell("html", "from IPython.display import HTML\nHTML('<i>x</i>')"),
    Cell("markdown", "from IPython.display import Markdown, display\ndisplay(Markdown('**b**'))"),
    Cell("latex_json_svg", "from IPython.display import JSON, SVG, Latex, display\ndisplay(Latex('$x$'), JSON({'a': [1]}), SVG('<svg xmlns=\"http://www.w3.org/2000/svg\"/>'))"),
    Cell("image", "import base64\nfrom IPython.display import Image\nImage(base64.b64decode('iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=='))"),
    Cell("metadata", "from IPython.display import display\ndisplay({'text/plain': 'raw', 'text/html': '<p>raw'}, raw=True, metadata={'text/html': {'isolated': True}})"),
    Cell("display_id", "from IPython.display import display\nh = display('before', display_id='fidelity-1')\nh.update('after')"),
    Cell("update_display", "from IPython.display import display, update_display\ndisplay('v1', display_id='fidelity-2')\nupdate_display('v2', display_id='fidelity-2')"),
    Cell("clear_output", "from IPython.display import clear_output\nprint('gone')\nclear_output()\nprint('stays')"),
    Cell("clear_output_wait", "from IPython.display import clear_output\nfor i in range(3):\n    clear_output(wait=True)\n    print(i)"),
    Cell("display_between_prints", "from IPython.display import display\nprint('a')\ndisplay('b')\nprint('c')"),
    # figures
    Cell("figure", "import matplotlib.pyplot as plt\nplt.plot([1, 3, 2])\nplt.title('t')\nplt.show()"),
    Cell("figure_implicit", "import matplotlib.pyplot as plt\nfig, ax = plt.subplots(figsize=(2, 1))\nax.bar([1, 2], [3, 4]);"),
    Cell("figure_inline_magic", "%matplotlib inline\nimport matplotlib.pyplot as plt\nplt.figure(figsize=(1, 1))\nplt.plot([0, 1])"),
    Cell("two_figures", "import matplotlib.pyplot as plt\nfor i in range(2):\n    plt.figure(figsize=(1, 1))\n    plt.plot([i])\n    plt.show()"),
    Cell("figure_result", "from matplotlib.figure import Figure\nf = Figure(figsize=(1, 1))\nf.subplots().plot([1, 2])\nf"),
    # errors
    Cell("zero_division", "def f(n):\n    return 1 / n\n\nf(0)"),
    Cell("name_error", "undefined_thing + 1"),
    Cell("syntax_error", "a = 1\nb = = 2"),
    Cell("indentation_error", "if True:\nprint('x')"),
    Cell("unclosed", "print((1, 2)\n"),
    Cell("key_error", "{'a': 1}['b']"),
    Cell("assertion", "x = 3\nassert x == 4, f'x was {x}'"),
    Cell("chained", "try:\n    int('x')\nexcept ValueError as e:\n    raise RuntimeError('while parsing') from e"),
    Cell("context", "try:\n    int('x')\nexcept ValueError:\n    {}['k']"),
    Cell("from_none", "try:\n    int('x')\nexcept ValueError:\n    raise RuntimeError('clean') from None"),
    Cell("own_exception", "class Mine(Exception):\n    def __str__(self):\n        return 'my own words'\nraise Mine(1, 2)"),
    Cell("exception_group", "raise ExceptionGroup('several', [ValueError('a'), TypeError('b')])"),
    Cell("nested_calls", "def a(x):\n    return b(x)\ndef b(x):\n    y = x\n    return c(y)\ndef c(x):\n    raise ValueError(x)\na('deep')"),
    Cell("library_error", "import numpy as np\nnp.zeros((2, 3)) @ np.zeros((2, 3))"),
    Cell("output_then_error", "print('before')\nraise ValueError('after')"),
    Cell("system_exit", "raise SystemExit(3)"),
    Cell("keyboard_interrupt_raised", "raise KeyboardInterrupt"),
    Cell("recursion", "import sys\ndef r(n):\n    return r(n + 1)\ntry:\n    r(0)\nexcept RecursionError as e:\n    print(type(e).__name__)"),
    Cell("error_with_note", "e = ValueError('v')\ne.add_note('a note')\nraise e"),
    # magics and shell
    Cell("time_line", "%time sum(range(10))"),
    Cell("time_cell", "%%time\ntotal = sum(range(1000))\nprint(total)"),
    Cell("capture", "%%capture got\nprint('caught')\n1 + 1"),
    Cell("timeit", "%timeit -n 2 -r 2 -q pass"),
    Cell("shell", "!echo from the shell"),
    Cell("shell_capture", "lines = !printf 'a\\nb\\n'\nprint(list(lines))"),
    Cell("shell_variable", "word = 'spam'\n!echo {word} $word"),
    Cell("shell_failure", "!exit 3"),
    Cell("shell_stderr", "!echo oops >&2"),
    Cell("bash_cell", "%%bash\nfor i in 1 2; do echo line $i; done"),
    Cell("html_cell", "%%html\n<u>under</u>"),
    Cell("javascript_cell", "%%javascript\n1 + 1"),
    Cell("writefile", "%%writefile made_by_cell.txt\ncontent"),
    Cell("env_magic", "%env FIDELITY=yes\nimport os\nprint(os.environ['FIDELITY'])"),
    Cell("bad_magic", "%no_such_magic"),
    Cell("pinfo", "print?"),
    Cell("pinfo_own", "def documented(a, b=1):\n    'What it does.'\n    return a\ndocumented?"),
    Cell("pinfo_source", "def with_source():\n    return 41\nwith_source??"),
    Cell("pinfo_missing", "nothing_of_this_name?"),
    Cell("load_next_input", "get_ipython().set_next_input('next = 1')"),
    Cell("run_script", "%run script.py"),
    # asynchronous, threads, processes
    Cell("await", "import asyncio\nawait asyncio.sleep(0.01)\nprint('woke')"),
    Cell("await_result", "import asyncio\nasync def f():\n    await asyncio.sleep(0)\n    return 5\nawait f()"),
    Cell("gather", "import asyncio\nasync def g(i):\n    await asyncio.sleep(0.01 * i)\n    print(i)\n    return i\nawait asyncio.gather(*(g(i) for i in range(3)))"),
    Cell("async_error", "import asyncio\nasync def h():\n    raise ValueError('in async')\nawait h()"),
    Cell("thread", "import threading\nt = threading.Thread(target=lambda: print('from a thread'))\nt.start()\nt.join()"),
    Cell("thread_pool", "from concurrent.futures import ThreadPoolExecutor\nwith ThreadPoolExecutor(4) as p:\n    print(list(p.map(lambda x: x * x, range(5))))"),
    Cell("thread_error", "import threading\nthreading.excepthook = lambda a: print('thread died of', a.exc_type.__name__)\nt = threading.Thread(target=lambda: 1 / 0)\nt.start()\nt.join()\nthreading.excepthook = threading.__excepthook__"),
    Cell("subprocess", "import subprocess\nprint(subprocess.run(['echo', 'captured'], capture_output=True, text=True).stdout)"),
    Cell("subprocess_direct", "import subprocess\nsubprocess.run(['echo', 'straight to the file descriptor'], check=True)\nNone"),
    Cell("os_write", "import os\nos.write(1, b'raw bytes\\n')\nNone"),
    Cell("os_system", "import os\nos.system('echo by system')"),
    Cell("multiprocessing", "import multiprocessing as mp\ndef sq(x):\n    return x * x\nwith mp.get_context('fork').Pool(2) as p:\n    print(p.map(sq, range(4)))"),
    Cell("c_stdio", "import ctypes\nlibc = ctypes.CDLL(None)\nlibc.puts(b'from C')\nlibc.fflush(None)\nNone"),
    # tqdm and widgets
    Cell("tqdm_text", "from tqdm import tqdm\nfor _ in tqdm(range(3), desc='t', mininterval=0, bar_format='{desc}: {n_fmt}/{total_fmt}'):\n    pass"),
    Cell("tqdm_widget", "from tqdm.notebook import tqdm\nfor _ in tqdm(range(3), desc='w', mininterval=0, bar_format='{desc}{bar}{n_fmt}/{total_fmt}'):\n    pass"),
    Cell("widget", "import ipywidgets as w\nw.IntSlider(value=3, min=0, max=9, description='s')"),
    Cell("widget_output", "import ipywidgets as w\nfrom IPython.display import display\no = w.Output()\ndisplay(o)\nwith o:\n    print('inside')\nprint('outside')"),
    Cell("widget_change", "import ipywidgets as w\ns = w.IntSlider(value=1)\ns.value = 5\ns.close()\nprint(s.value)"),
    # input
    Cell("input", "name = input('name? ')\nprint('hello', name)", answers=("Ada",)),
    Cell("input_twice", "a = input('a ')\nb = input('b ')\nprint(a + b)", answers=("1", "2")),
    Cell("getpass", "from getpass import getpass\nprint(len(getpass('secret: ')))", answers=("abcd",)),
    Cell("debugger", "def broken(x):\n    import pdb\n    pdb.set_trace()\n    return x\nbroken(3)", answers=("p x", "c")),
    # files and modules beside the notebook
    Cell("read_file", "print(open('data.txt').read())"),
    Cell("import_helper", "import helper\nhelper.double(21)"),
    Cell("helper_error", "import helper\nhelper.fails()"),
    Cell("listdir", "import os\nsorted(n for n in os.listdir('.') if n in ('data.txt', 'helper.py', 'script.py'))"),
    Cell("pwd", "import os\nos.path.basename(os.getcwd())"),
]  # fmt: skip

# A plain ipykernel 7 hands a front end's change to the cell only after it has ended when the widget was made in that very
# cell (its comm is pinned to the main shell), so this row has an expectation of its own instead of a local twin.
WIDGET_FROM_FRONT = Cell(
    "widget_from_front",
    """
import time
import ipywidgets as w
from IPython.display import display
slider = w.IntSlider(value=1, max=100)
display(slider)
limit = time.monotonic() + 20
while slider.value == 1 and time.monotonic() < limit:
    time.sleep(0.01)
print('became', slider.value)
""",
    widget_value=42,
)

# The stated lesser mode: a front end without subshells (VS Code, Notebook 7 settings, older JupyterLab).
WIDGET_WITHOUT_SUBSHELL = Cell(
    "widget_without_subshell",
    """
import time
import ipywidgets as w
from IPython.display import display
late = w.IntSlider(value=1, max=100)
display(late)
limit = time.monotonic() + 0.6
while late.value == 1 and time.monotonic() < limit:
    time.sleep(0.01)
print('is', late.value)
""",
    widget_value=42,
    subshell=False,
)
