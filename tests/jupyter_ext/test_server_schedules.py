"""Schedules through the Jupyter server: what the form begins with, what it saves, who was faster, what a run wrote."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bench.harness import House, house
from cellburst.scheduling import Asked, notify_of, spec_of, when_of
from cellburst_jupyter.server import schedule_form
from cellburst_jupyter.server.runs import untrusted
from cellburst_jupyter.server.schedule_form import (
    ScheduleText,
    duration_text,
    parameters_of,
    same_notebook,
    start_text,
    text_of,
)
from cellburst_protocol.errors import CellburstError
from cellburst_protocol.messages import GetSchedule
from cellburst_protocol.resources import GpuChoice, Resources, parse_seconds
from cellburst_protocol.schedules import ScheduleSpec
from cellburst_protocol.volume_mounts import parse_volumes
from tests.house.test_schedules import ask as ask_gateway
from tests.jupyter_ext.jupyter_side import Client, Server, jupyter_server

CELLS: list[dict[str, Any]] = [
    {"source": "rate = 0.5\nname = 'a'\nrows: list = [1]\nanything = f()", "tags": ["parameters"]},
    {"source": "%%modal gpu=A100\nprint('rate is', rate)"},
]


def book(cells: list[dict[str, Any]], kernel: str = "python3") -> dict[str, Any]:
    made = [
        {
            "cell_type": "code", "id": f"c{n}", "metadata": {"tags": cell.get("tags", [])}, "source": cell["source"],
            "outputs": [], "execution_count": None,
        }
        for n, cell in enumerate(cells)
    ]  # fmt: skip
    metadata = {"kernelspec": {"name": kernel, "display_name": "Python 3", "language": "python"}}
    return {"cells": made, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


# -- text, both ways ---------------------------------------------------------------------------------------------------


def test_the_form_has_each_field_of_the_command_line() -> None:
    ours = {field.name: field.default for field in msgspec.structs.fields(ScheduleText)}
    theirs = {field.name: field.default for field in dataclasses.fields(Asked)}
    assert ours.keys() == theirs.keys()
    same = [name for name in ours if name not in ("parameters", "notify")]
    assert [ours[name] for name in same] == [theirs[name] for name in same]


@pytest.mark.parametrize("seconds", [1, 59, 60, 90, 5400, 86400, 90061, 0.5, 604800])
def test_a_duration_is_read_as_it_was_written(seconds: float) -> None:
    assert parse_seconds(duration_text(seconds), "x", 1e9) == seconds


@pytest.mark.parametrize(
    "times", [{"cron": "0 7 * * 1-5"}, {"every": "1h30m"}, {"at": "2030-10-27T02:30"}, {"at": "2030-01-01T00:00:30"}]
)
def test_a_schedule_is_the_same_again_after_the_form(times: dict[str, str]) -> None:
    asked = Asked(**times, timezone="Europe/Berlin", name="n")  # type: ignore[arg-type]
    resources = Resources(gpus=(GpuChoice("H100", 2), GpuChoice("A100-80GB")), cpu=2.5, memory_mib=6000, network="none")
    spec = ScheduleSpec(
        name="n", notebook="/n.ipynb", when=when_of(asked), resources=resources, secrets=["a", "b"],
        volumes=parse_volumes("/data:one:ro,/out:two:last_write_wins"), parameters={"x": 1, "y": [True, None]},
        timeout_seconds=7200.0, retries=3, budget_usd="1.50", overlap="queue", missed="all", missed_window_seconds=86400.0,
        keep_runs=7, keep_days=1.5, with_folder=False, modal_cells="same",
        notify=[notify_of(t) for t in ("jupyter", "jupyter:failure", "a@b.example:success", "https://x.example/y")],
    )  # fmt: skip
    text = text_of(spec)
    again = text.asked()
    assert when_of(again) == spec.when
    assert [notify_of(t) for t in again.notify] == spec.notify
    assert parse_volumes(again.volumes) == spec.volumes
    assert text_of(spec_of(again, Path("/n.ipynb"))) == text
    assert (text.gpu, text.memory, text.cpu, text.network) == ("H100:2,A100-80GB", "6000MiB", "2.5", "none")
    assert (text.timeout, text.missed_window, text.budget, text.secrets) == ("2h", "1d", "1.50", "a,b")
    assert (text.keep_runs, text.keep_days, text.retries, text.folder, text.modal_cells) == (7, 1.5, 3, False, "same")
    assert (text.overlap, text.missed, text.parameters) == ("queue", "all", {"x": 1, "y": [True, None]})


def test_a_new_form_begins_with_what_the_notebook_asks_for() -> None:
    text = start_text("n", Resources(gpus=(GpuChoice("T4"),)), {"secrets": "s", "volumes": "/data:v"})
    assert (text.cron, text.gpu, text.memory, text.secrets, text.volumes) == (
        "0 7 * * 1-5",
        "T4",
        "4GiB",
        "s",
        "/data:v",
    )


def test_parameters_have_types_and_defaults() -> None:
    found = parameters_of(book(CELLS))
    assert found is not None
    assert [(p.name, p.type, p.default) for p in found] == [
        ("rate", "float", "0.5"), ("name", "str", "'a'"), ("rows", "list", "[1]"), ("anything", "", "f()")
    ]  # fmt: skip
    assert parameters_of(book(CELLS[1:])) is None
    with pytest.raises(CellburstError):
        parameters_of(book([{"source": "rate = ", "tags": ["parameters"]}]))


def test_outputs_make_no_other_notebook_and_text_does() -> None:
    one, other = book(CELLS), book(CELLS)
    other["cells"][1] |= {"outputs": [{"output_type": "stream", "name": "stdout", "text": "x"}], "execution_count": 4}
    other["cells"][0]["source"] = [line + "\n" for line in CELLS[0]["source"].split("\n")]
    other["cells"][0]["source"][-1] = other["cells"][0]["source"][-1].rstrip("\n")
    assert same_notebook(one, other)
    other["cells"][1]["source"] += " "
    assert not same_notebook(one, other)
    assert not same_notebook(one, book(list(reversed(CELLS))))
    assert not same_notebook(one, book([{"source": CELLS[0]["source"]}, CELLS[1]]))  # a tag less


# -- a server and a gateway --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place() -> Iterator[House]:
    with house("A100:1") as made:
        yield made


@pytest.fixture(scope="module")
def server(place: House) -> Iterator[Server]:
    with jupyter_server(place) as made:
        yield made


@pytest.fixture(scope="module")
def user(server: Server) -> Client:
    client = server.program()
    assert client.ask("POST", "start", {}).status == 200
    return client


def write(server: Server, name: str, content: object) -> Path:
    path = server.log.parent / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def ask(user: Client, method: str, path: str, body: object = None, status: int = 200) -> Any:
    answer = user.ask(method, path, body)
    assert answer.status == status, answer.body
    return answer.json


def test_a_schedule_from_first_look_to_deletion(server: Server, user: Client) -> None:
    path = write(server, "report.ipynb", book(CELLS))
    looked = ask(user, "POST", "schedules/look", {"path": "report.ipynb"})
    text = looked["text"]
    assert (text["name"], text["cron"], text["memory"]) == ("report", "0 7 * * 1-5", "4GiB")
    assert [p["name"] for p in looked["parameters"]] == ["rate", "name", "rows", "anything"]
    assert looked["python"] and looked["python_version"]
    made = ask(
        user,
        "POST",
        "schedules",
        {"path": "report.ipynb", "text": text | {"name": "report", "parameters": {"rate": 1.5}}},
    )
    row = made["row"]
    assert (row["name"], row["notebook"], row["revision"]) == ("report", str(path), 1)
    assert len(made["next_unix_seconds"]) == 5 and "changed" not in made

    # two editors: the second is told, and may then save over it
    first = made["text"] | {"cron": "30 8 * * *", "parameters": {"rate": 2.5}}
    saved = ask(user, "PUT", f"schedules/{row['id']}", {"text": first, "revision": 1, "take": False})
    assert (saved["row"]["revision"], saved["text"]["cron"]) == (2, "30 8 * * *")
    second = made["text"] | {"cron": "0 9 * * *"}
    told = ask(user, "PUT", f"schedules/{row['id']}", {"text": second, "revision": 1, "take": False}, 409)
    assert told["code"] == "request.conflict"
    saved = ask(user, "PUT", f"schedules/{row['id']}", {"text": second, "revision": 2, "take": False})
    assert (saved["row"]["revision"], saved["text"]["cron"]) == (3, "0 9 * * *")

    # the notebook changes: outputs are no change, code is; one click takes it over
    changed = book(CELLS)
    changed["cells"][1]["execution_count"] = 3
    path.write_text(json.dumps(changed))
    assert "changed" not in ask(user, "GET", f"schedules/{row['id']}")
    path.write_text(json.dumps(book([*CELLS, {"source": "print('more')"}])))
    assert ask(user, "GET", f"schedules/{row['id']}")["changed"] is True
    assert ask(user, "GET", "schedules")["changed"] == [row["id"]]
    kept = ask(user, "PUT", f"schedules/{row['id']}", {"text": second, "revision": 3, "take": False})
    assert kept["row"]["notebook_hash"] == made["row"]["notebook_hash"] and kept["changed"] is True
    taken = ask(user, "POST", f"schedules/{row['id']}/take", {})
    assert taken["row"]["notebook_hash"] != made["row"]["notebook_hash"] and "changed" not in taken
    assert (taken["text"]["cron"], taken["text"]["parameters"]) == ("0 9 * * *", {"rate": 1.5})

    path.unlink()
    assert ask(user, "GET", f"schedules/{row['id']}")["gone"] is True
    listed = ask(user, "GET", "schedules")
    assert (listed["gone"], listed.get("changed", [])) == ([row["id"]], [])
    still = ask(user, "PUT", f"schedules/{row['id']}", {"text": first, "revision": 5, "take": False})
    assert still["text"]["cron"] == "30 8 * * *"  # times can be changed, although the notebook is gone
    assert ask(user, "POST", f"schedules/{row['id']}/take", {}, 404)["code"] == "request.not_found"
    ask(user, "DELETE", f"schedules/{row['id']}")
    assert ask(user, "GET", "schedules").get("rows", []) == []


def test_a_folder_that_has_grown_too_large_is_told_only_where_it_would_be_kept(server: Server, user: Client) -> None:
    path = write(server, "grown/grown.ipynb", book(CELLS))
    (path.parent / "helper.py").write_text("x = 1")
    text = ask(user, "POST", "schedules/look", {"path": "grown/grown.ipynb"})["text"]
    row = ask(user, "POST", "schedules", {"path": "grown/grown.ipynb", "text": text})["row"]
    with (path.parent / "data.bin").open("wb") as file:
        file.truncate(600 * 1024**2)  # a hole: it takes no room
    kept = ask(user, "POST", "schedules/look", {"schedule": row["id"], "take": False})
    assert "problem" not in kept and (kept["files_count"], kept["files_bytes"]) == (1, 5)
    again = {"schedule": row["id"], "take": False, "text": kept["text"] | {"gpu": "A100"}}
    assert "problem" not in ask(user, "POST", "schedules/look", again)
    changed = {"text": kept["text"] | {"cron": "0 9 * * *"}, "revision": 1, "take": False}
    assert ask(user, "PUT", f"schedules/{row['id']}", changed)["row"]["revision"] == 2

    # what would keep the folder says its size, the limit and what to do, also where the form begins
    taken = ask(user, "POST", "schedules/look", {"schedule": row["id"], "text": kept["text"]})["problem"]
    saved = ask(user, "PUT", f"schedules/{row['id']}", changed | {"revision": 2, "take": True}, 413)
    fresh = ask(user, "POST", "schedules/look", {"path": "grown/grown.ipynb"})
    for told in (taken, saved, fresh["problem"]):
        assert (
            told["code"] == "request.too_large"
            and "2 files and 629.1 MB, most of it data.bin (629.1 MB)" in told["message"]
        )
        assert "536.9 MB" in told["allowed"] and "stay here" in told["next"]
    assert (fresh["text"]["name"], fresh["text"]["memory"], fresh["text"].get("folder", True)) == (
        "grown",
        "4GiB",
        True,
    )
    stays = {"path": "grown/grown.ipynb", "text": fresh["text"] | {"folder": False, "name": "without"}}
    assert "problem" not in ask(user, "POST", "schedules/look", stays)
    assert ask(user, "POST", "schedules", stays)["row"]["name"] == "without"
    (path.parent / "data.bin").unlink()
    for one in ask(user, "GET", "schedules")["rows"]:
        ask(user, "DELETE", f"schedules/{one['id']}")


def test_an_image_is_read_from_its_file_kept_changed_and_taken_away(place: House, server: Server, user: Client) -> None:
    path = write(server, "imaged/imaged.ipynb", book(CELLS))
    write(
        server,
        "imaged/images.py",
        "import cellburst\none = cellburst.Image.debian_slim('3.11')\ntwo = one.env({'A': 'b'})\n",
    )
    text = ask(user, "POST", "schedules/look", {"path": "imaged/imaged.ipynb"})["text"]
    for image, said in (("img", "names no file"), ("gone.py:one", "there is no file")):
        looked = ask(user, "POST", "schedules/look", {"path": "imaged/imaged.ipynb", "text": text | {"image": image}})
        assert said in looked["problem"]["message"]
    refused = {"path": "imaged/imaged.ipynb", "text": text | {"image": "images.py:three"}}
    assert "no image" in ask(user, "POST", "schedules", refused, 400)["message"]
    made = ask(user, "POST", "schedules", {"path": "imaged/imaged.ipynb", "text": text | {"image": "images.py:one"}})
    row, text = made["row"], made["text"]
    assert text["image"] == "images.py:one"

    def steps() -> tuple[int, bool]:
        spec = ask_gateway(place, GetSchedule(schedule=row["id"])).spec
        return len(spec.recipe.steps) if spec.recipe is not None else 0, spec.frozen is not None

    assert steps() == (1, True)
    (path.parent / "images.py").write_text("broken(")  # an edit that keeps the image reads no file
    change = {"text": text | {"cron": "0 9 * * *"}, "revision": 1, "take": False}
    ask(user, "PUT", f"schedules/{row['id']}", change)
    assert steps() == (1, True)
    write(server, "imaged/images.py", "import cellburst\none = cellburst.Image.debian_slim('3.11').env({'A': 'b'})\n")
    ask(user, "POST", f"schedules/{row['id']}/take", {})
    assert steps() == (2, True), "what is taken over is the image as it is now, too"
    ask(user, "PUT", f"schedules/{row['id']}", {"text": text | {"image": ""}, "revision": 3, "take": False})
    assert steps() == (0, True)
    ask(user, "PUT", f"schedules/{row['id']}", {"text": text, "revision": 4, "take": False})
    assert steps() == (2, True)
    ask(user, "DELETE", f"schedules/{row['id']}")


@pytest.mark.parametrize(
    ("times", "said"),
    [
        ({"cron": "61 * * * *"}, "61"), ({"cron": "0 0 31 2 *"}, "never"), ({"cron": "0 0 0 1 1 *"}, "6 fields"),
        ({"cron": "0 7 * * *", "timezone": "Europe/Berlln"}, "Europe/Berlin"), ({"every": "soon"}, "soon"), ({}, "no time"),
        ({"at": "2001-01-01T00:00"}, ""),
    ],
)  # fmt: skip
def test_times_that_are_wrong_are_told_while_they_are_typed(user: Client, times: dict[str, str], said: str) -> None:
    answer = ask(user, "POST", "schedules/preview", {"text": times})
    assert said in json.dumps(answer["problem"]) and not answer.get("next_unix_seconds")


def test_times_are_read_in_words_with_the_next_five(user: Client) -> None:
    answer = ask(user, "POST", "schedules/preview", {"text": {"cron": "0 7 * * 1-5", "timezone": "Asia/Tokyo"}})
    assert "07:00" in answer["words"] and "Monday to Friday" in answer["words"] and "problem" not in answer
    assert len(answer["next_unix_seconds"]) == 5 and all("07:00" in local for local in answer["next_local"])
    assert answer["forecast"]["month_instants_count"] in range(20, 24)


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("none.ipynb", "no json", "bad_argument"), ("empty.ipynb", book([]), "bad_argument"),
        ("../../etc/passwd", None, "not_found"), ("missing.ipynb", None, "not_found"), (".hidden.ipynb", book(CELLS), "not_found"),
        ("r.ipynb", book(CELLS) | {"metadata": {"kernelspec": {"name": "no-such-kernel"}}}, ""),
        ("text.txt", "x", "not_found"),
    ],
)  # fmt: skip
def test_notebooks_that_cannot_be_scheduled(
    server: Server, user: Client, name: str, content: object, code: str
) -> None:
    if content is not None:
        write(server, name, content)
    answer = user.ask("POST", "schedules/look", {"path": name})
    if code:
        assert (answer.status, answer.json["code"]) == (404 if code == "not_found" else 400, f"request.{code}"), (
            answer.body
        )
    else:  # its kernel is not here: said, and this server's environment is taken
        assert answer.status == 200 and any("no-such-kernel" in note for note in answer.json["notes"]), answer.body


def test_what_a_run_would_stumble_over_is_told_before_it_is_saved(server: Server, user: Client) -> None:
    cells: list[dict[str, Any]] = [{"source": "import no_such_module_here\nname = input()"}]
    write(server, "asks.ipynb", book(cells))
    found = ask(user, "POST", "schedules/look", {"path": "asks.ipynb"})["findings"]
    assert {f["kind"] for f in found} == {"problem"} and {f["cell"] for f in found} == {1}
    assert any("input()" in f["text"] for f in found) and any("no_such_module_here" in f["text"] for f in found)


def test_a_field_that_is_wrong_is_told_with_the_parameters_still_there(server: Server, user: Client) -> None:
    write(server, "fields.ipynb", book(CELLS))
    text = ask(user, "POST", "schedules/look", {"path": "fields.ipynb"})["text"]
    for wrong, said in (
        ({"gpu": "B999"}, "B999"), ({"memory": "much"}, "much"), ({"timeout": "-1"}, "-1"), ({"budget": "free"}, "free"),
        ({"parameters": {"rate": "fast"}}, "rate"), ({"parameters": {"rat": 1}}, "rate"), ({"volumes": "data"}, "data"),
    ):  # fmt: skip
        answer = ask(user, "POST", "schedules/look", {"path": "fields.ipynb", "text": text | wrong})
        assert said in json.dumps(answer["problem"]), answer
        assert len(answer["parameters"]) == 4
        refused = ask(user, "POST", "schedules", {"path": "fields.ipynb", "text": text | wrong}, 400)
        assert refused["message"] == answer["problem"]["message"]


def test_an_end_is_told_to_one_window_once(user: Client) -> None:
    assert ask(user, "POST", "ends", {"window": "one", "shown": ["no-such-run"]}) == {"t": "ends"}
    assert ask(user, "POST", "ends", {"window": ""}, 400)["code"] == "request.bad_argument"
    assert ask(user, "POST", "ends", {}, 400)["code"] == "request.bad_argument"


def test_a_path_that_climbs_out_of_runs_finds_nothing(user: Client) -> None:
    for path in (
        "runs/no-such-run/files/a",
        "runs/..%2Fruns/files/..%2Fx",
        "runs/..%2F..%2Fhealth/notebook",
        "runs/no-such-run/notebook",
        "runs/..%2Fschedules%2Fx/notebook",
    ):
        assert user.ask("GET", path).status == 404, path


def test_a_runs_notebook_does_not_say_that_it_is_trusted() -> None:
    cells = [{"cell_type": "code", "metadata": {"trusted": True, "tags": ["a"]}}, {"cell_type": "markdown"}]
    shown = json.loads(untrusted(json.dumps({"cells": cells, "nbformat": 4}).encode()))
    assert shown == {
        "cells": [{"cell_type": "code", "metadata": {"tags": ["a"]}}, {"cell_type": "markdown"}],
        "nbformat": 4,
    }
    for damaged in (b"", b"[]", b'{"cells": 3}', b"[" * 100_000):
        with pytest.raises(CellburstError):
            untrusted(damaged)


@pytest.mark.parametrize(
    ("at", "field"),
    [("", ""), ("2027-01-15T09:00:00+01:00", "2027-01-15T09:00"), ("2027-01-15T09:00:30-05:00", "2027-01-15T09:00:30")],
)
def test_a_moment_is_what_a_field_for_local_time_shows(at: str, field: str) -> None:
    assert schedule_form._field_time(at) == field
