"""Preference pairs of each published layout, and what is no pair."""

import json
import random

import pytest

from data.io import InputError
from data.problems.preferences import Preference, load_preferences

SYSTEM, USER = {"role": "system", "content": "S"}, {"role": "user", "content": "Q?"}
GOOD, BAD = {"role": "assistant", "content": "Yes."}, {"role": "assistant", "content": "No."}
PAIR = Preference([USER], "Yes.", "No.")
CHAT = Preference([USER], "Yes.", "No.", is_chat=True)
TURNS = [SYSTEM, USER, GOOD, USER]

LAYOUTS = {
    "trl": ({"prompt": "Q?", "chosen": "Yes.", "rejected": "No."}, PAIR),
    "trl_chat": ({"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}, CHAT),
    "trl_turns": (
        {"prompt": TURNS, "chosen": [GOOD], "rejected": [BAD]},
        Preference(TURNS, "Yes.", "No.", is_chat=True),
    ),
    "trl_implicit": ({"chosen": [USER, GOOD], "rejected": [USER, BAD]}, CHAT),
    "trl_implicit_turns": (
        {"chosen": [*TURNS, GOOD], "rejected": [*TURNS, BAD]},
        Preference(TURNS, "Yes.", "No.", is_chat=True),
    ),
    "ultrafeedback": (
        {"prompt": "Q?", "chosen": [USER, GOOD], "rejected": [USER, BAD], "score_chosen": 8.0},
        CHAT,
    ),
    "hh_rlhf": (
        {
            "chosen": "\n\nHuman: Q?\n\nAssistant: Yes.",
            "rejected": "\n\nHuman: Q?\n\nAssistant: No.",
        },
        CHAT,
    ),
    "hh_rlhf_with_prompt": (
        {"prompt": "\n\nHuman: Q?\n\nAssistant:", "chosen": " Yes.", "rejected": " No."},
        Preference([USER], " Yes.", " No.", is_chat=True),
    ),
    "orca": (
        {"system": "S", "question": "Q?", "chosen": "Yes.", "rejected": "No."},
        Preference([SYSTEM, USER], "Yes.", "No."),
    ),
    "alpaca": (
        {"instruction": "Q?", "input": "", "chosen": "Yes.", "rejected": "No."},
        PAIR,
    ),
    "sharegpt": (
        {
            "conversations": [{"from": "human", "value": "Q?"}],
            "chosen": {"from": "gpt", "value": "Yes."},
            "rejected": {"from": "gpt", "value": "No."},
        },
        CHAT,
    ),
    "responses": (
        {"question": "Q?", "response_chosen": "Yes.", "response_rejected": "No."},
        PAIR,
    ),
    "better_response": (
        {"prompt": "Q?", "response_0": "No.", "response_1": "Yes.", "better_response_id": 1},
        PAIR,
    ),
    "llama_factory": ({"chosen_messages": [USER, GOOD], "rejected_messages": [USER, BAD]}, CHAT),
    "reject": ({"prompt": "Q?", "chosen": "Yes.", "reject": "No."}, PAIR),
    "ms_swift": ({"messages": [USER, GOOD], "rejected_response": "No."}, CHAT),
    "ms_swift_query": ({"query": "Q?", "response": "Yes.", "rejected_response": "No."}, PAIR),
    "helpsteer2": (
        {"prompt": "Q?", "response_1": "No.", "response_2": "Yes.", "preference_strength": 2},
        PAIR,
    ),
    "helpsteer3": (
        {"context": TURNS, "response1": "Yes.", "response2": "No.", "overall_preference": -1},
        Preference(TURNS, "Yes.", "No.", is_chat=True),
    ),
    "step_dpo": (
        {
            "prompt": "Q?",
            "initial_reason_steps": "Step 1: it is.\nStep 2:",
            "chosen": " Yes.",
            "rejected": " No.",
            "full_chosen": " Yes. Step 3: done.",
            "full_rejected": " No. Step 3: done.",
            "answer": "1",
        },
        Preference([USER], " Yes.", " No.", "Step 1: it is.\nStep 2:", whole=False),
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(tmp_path, name):
    row, expected = LAYOUTS[name]
    path = tmp_path / "f.jsonl"
    path.write_text(json.dumps(row) + "\n" + json.dumps(row) + "\n")
    assert list(load_preferences(path)) == [(f"{path}:1", expected), (f"{path}:2", expected)]
    columns = [*row.items(), ("id", 7), ("source", "s"), ("score", 0.5)]
    rng = random.Random(name)
    for _ in range(5):
        rng.shuffle(columns)
        (tmp_path / "f.json").write_text(json.dumps([dict(columns)]))
        assert [pair for _, pair in load_preferences(tmp_path / "f.json")] == [expected]


@pytest.mark.parametrize(
    "row, message",
    [
        ({"prompt": "Q?", "completion": "A", "label": True}, "no chosen and rejected among prompt"),
        (
            {"prompt": "Q?", "response_0": "A", "better_response_id": 0},
            "no chosen and rejected among prompt, response_0",
        ),
        (
            {"prompt": "Q?", "response_1": "A", "response_2": "B", "preference_strength": 0},
            "no chosen and rejected among prompt, response_1",
        ),
        ({"prompt": "Q?", "chosen": "A"}, "no chosen and rejected among prompt, chosen; data are"),
        ({"chosen": "Yes.", "rejected": "No."}, "no prompt; add one, or give chats with a common"),
        ({"chosen": [USER, GOOD], "rejected": [SYSTEM, BAD]}, "no prompt"),
        ({"prompt": "Q?", "chosen": "A ", "rejected": " A"}, "chosen and rejected are the same"),
        (
            {"chosen": [USER, GOOD, USER, GOOD], "rejected": [USER, BAD, USER, GOOD]},
            "after the common beginning, chosen is assistant, user, assistant; it must be one",
        ),
    ],
)
def test_what_is_no_pair(tmp_path, row, message):
    path = tmp_path / "f.jsonl"
    path.write_text(json.dumps(LAYOUTS["trl"][0]) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(InputError) as error:
        list(load_preferences(path))
    assert str(error.value).startswith(f"{path}:2: {message}")
    assert "\n" not in str(error.value)
