"""A container's network as code in a real runsc sandbox sees it, with the mirror's own `/etc/resolv.conf`."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from cellburst_jupyter.environment import collect_environment
from cellburst_runtime.engine import ContainerSpec
from cellburst_runtime.mirror import plan_mirror
from cellburst_runtime.network import Networks
from cellburst_runtime.oci import config, write_bundle
from cellburst_runtime.tools import find_runsc
from tests.fakes.dns_server import DnsServer
from tests.runtime.test_network import HOST, INNER, PORT, PUBLIC, World

RUNSC = find_runsc(Path("/nonexistent"))
pytestmark = [
    pytest.mark.netns,
    pytest.mark.gvisor,
    pytest.mark.skipif(os.geteuid() != 0 or not RUNSC, reason="needs root and runsc"),
]

SAY = f"""
import json, socket
def reach(host, port):
    try:
        with socket.create_connection((host, port), 0.5) as s:
            return s.recv(5).decode()
    except OSError as why:
        return type(why).__name__
def name(host):
    try:
        return sorted({{a[4][0] for a in socket.getaddrinfo(host, 80)}})
    except OSError as why:
        return type(why).__name__
print(json.dumps({{
    "public": reach("{PUBLIC}", {PORT}), "inner": [reach(a, {PORT}) for a in {INNER!r}], "host": reach("{HOST}", 22),
    "by_name": reach("example.org", {PORT}), "names": [name(n) for n in ("example.org", "trap.example.org", "metadata.google.internal")],
}}))
"""


@pytest.fixture
def world() -> Iterator[World]:
    outside = World()
    yield outside
    outside.close()


async def test_code_in_a_sandbox_reaches_the_internet_by_name_and_nothing_else(world: World, tmp_path: Path) -> None:
    notebook, folder, state = tmp_path / "notebook", tmp_path / "c", Path("/tmp") / f"cb-{uuid.uuid4().hex[:8]}"
    notebook.mkdir()
    for part in ("var/ctl", "var/in", "var/out", "engine"):
        (folder / part).mkdir(parents=True)
    plan = plan_mirror(collect_environment(notebook_folder=str(notebook)))
    spec = ContainerSpec(
        id=state.name, folder=folder, arguments=(*plan.python, "-c", SAY), environment=plan.environment, working_folder="/",
        mounts=plan.mounts, links=plan.links, root_files=plan.root_files, cpu=1, memory_mib=1024, uid=plan.uid, gid=plan.gid,
    )  # fmt: skip
    async with DnsServer({"example.org": [PUBLIC], "trap.example.org": ["169.254.169.254"]}) as dns:
        networks = Networks(tmp_path / "run", upstreams=[dns.upstream], machine_folder=tmp_path / "machine")
        network = await networks.create(spec.id)
        document = config(
            spec, cgroup_path="", network_namespace=str(network.namespace_path), uid=plan.uid, gid=plan.gid
        )
        write_bundle(spec, folder / "engine", document)
        runsc = [
            RUNSC,
            f"--root={state}",
            "--platform=systrap",
            "--network=sandbox",
            "--overlay2=none",
            "--ignore-cgroups",
        ]
        # See engine_gvisor: newer kernels show this folder in each namespace, which this runsc takes for the host's. It has
        # an entry of its own in each, so it is hidden from within.
        hidden = f"nsenter --net={network.namespace_path} mount -t tmpfs -o size=4k none /proc/sys/net/core && exec "
        script = hidden + shlex.join([*runsc, "run", "--bundle", str(folder / "engine"), spec.id])
        run = await asyncio.create_subprocess_exec(
            *("unshare", "--mount", "--propagation", "slave", "sh", "-c", script), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )  # fmt: skip
        try:
            out, err = await asyncio.wait_for(run.communicate(), 90)
        finally:
            gone = await asyncio.create_subprocess_exec(
                *runsc, "delete", "-force", spec.id, stderr=asyncio.subprocess.DEVNULL
            )
            await gone.wait()
            shutil.rmtree(state, ignore_errors=True)
            await networks.close()
    assert run.returncode == 0, out.decode() + err.decode()
    said = json.loads(out)
    assert said["public"] == "hello" and said["by_name"] == "hello"
    assert said["inner"] == ["TimeoutError"] * len(INNER) and said["host"] == "TimeoutError"
    assert said["names"] == [[PUBLIC], "gaierror", "gaierror"]
