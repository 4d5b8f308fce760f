"""What a bundle holds, for each Python minor version: ipykernel with all it imports, cloudpickle and dill, no debugger.

Complete sets: a bundle is installed from them without resolving anything. From 3.11 on they are the versions that the
project itself is tested with (`constraints.txt`, a test compares them); older minors end at earlier releases.
"""

from __future__ import annotations

_SHARED = """
asttokens==3.0.2 cloudpickle==3.1.2 comm==0.2.3 dill==0.4.1 executing==2.3.0 matplotlib-inline==0.2.2 packaging==26.3
pexpect==4.9.0 psutil==7.2.2 ptyprocess==0.7.0 pure-eval==0.2.4 pygments==2.21.0 pyzmq==27.3.0 stack-data==0.6.3
typing-extensions==4.16.0 tzdata==2026.6 wcwidth==0.9.4
"""
_PYTHON_39 = """
decorator==5.3.1 exceptiongroup==1.3.1 importlib-metadata==8.7.1 ipykernel==6.31.0 ipython==8.18.1 jedi==0.19.2
jupyter-client==8.6.3 jupyter-core==5.8.1 nest-asyncio==1.6.0 parso==0.8.7 platformdirs==4.4.0 prompt-toolkit==3.0.52
python-dateutil==3.0.0 six==1.17.0 tornado==6.5.10 traitlets==5.15.1 zipp==3.23.1
"""
_PYTHON_310 = """
decorator==5.3.1 exceptiongroup==1.3.1 ipykernel==7.3.0 ipython==8.39.0 jedi==0.20.1 jupyter-client==8.10.0
jupyter-core==5.9.1 nest-asyncio2==1.7.4 parso==0.8.7 platformdirs==4.12.4 prompt-toolkit==3.0.53
python-dateutil==3.0.0 six==1.17.0 tornado==6.5.10 traitlets==5.16.1
"""
_FROM_311 = """
ipykernel==7.4.0 ipython==9.18.1 ipython-pygments-lexers==1.1.1 jedi==0.20.1 jupyter-client==8.10.0
jupyter-core==5.9.1 nest-asyncio2==1.7.4 parso==0.8.7 platformdirs==4.14.5 prompt-toolkit==3.0.53
python-dateutil==2.9.0.post0 six==1.17.0 tornado==6.6.1 traitlets==5.16.1
"""

_OWN = {"3.9": _PYTHON_39, "3.10": _PYTHON_310, **dict.fromkeys(("3.11", "3.12", "3.13", "3.14"), _FROM_311)}
PINS: dict[str, tuple[str, ...]] = {minor: tuple(sorted((_SHARED + own).split())) for minor, own in _OWN.items()}
