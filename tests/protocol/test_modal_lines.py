"""What `%%modal` lines ask for, before they run."""

from __future__ import annotations

from cellburst_protocol.modal_lines import asked_beside, line_values, notebook_uses


def test_a_line_s_words_in_both_forms() -> None:
    assert line_values("gpu=A100 --memory 8GiB detach gpu=T4") == {"gpu": "T4", "memory": "8GiB"}
    assert line_values('volumes="/a b:x" --secrets=hf') == {"volumes": "/a b:x", "secrets": "hf"}
    assert line_values("gpu='A100") == {}


def test_names_of_lines_and_of_the_metadata_which_a_line_overrides() -> None:
    uses = notebook_uses({"metadata": {"cellburst": {"volumes": {"/d": "base"}, "secrets": ["hf"]}}})
    assert uses == {"volumes": "/d:base", "secrets": "hf"}
    assert asked_beside(["gpu=T4"], uses) == (["hf"], ["base"])
    assert asked_beside(["secrets=none volumes=/e:other,/f:more:ro", "secrets=db:KEY"], uses) == (
        ["db"],
        ["base", "more", "other"],
    )
    assert asked_beside([], uses) == ([], [])


def test_metadata_of_another_shape_names_nothing() -> None:
    for wrong in (
        {},
        {"metadata": 1},
        {"metadata": {"cellburst": [1]}},
        {"metadata": {"cellburst": {"volumes": {"/d": 1}}}},
        {"metadata": {"cellburst": {"secrets": ['a" gpu="H100']}}},
    ):
        assert notebook_uses(wrong) == {}
    assert asked_beside(["volumes=nonsense"], {}) == ([], [])
