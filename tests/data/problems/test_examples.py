"""SFT examples of each published layout, and what is no example."""

import json
import random

import pytest

from data.io import InputError
from data.problems.examples import Example, load_examples

USER, ASSISTANT = {"role": "user", "content": "Q?"}, {"role": "assistant", "content": "A."}
SYSTEM = {"role": "system", "content": "S"}
QA = [USER, ASSISTANT]
PROGRAM = "x = 3\nprint(x)"
TOOL = "We run it.\n```python\nprint(3)\n```\n```output\n3\n```\nThe answer is 3."

# layout: (row, example)
LAYOUTS = {
    "ours": ({"question": "Q?", "response": "A.", "format": "tool"}, Example(QA, "tool")),
    "ours_without_format": ({"question": "Q?", "response": "A."}, Example(QA)),
    "openai": ({"messages": [SYSTEM, *QA]}, Example([SYSTEM, *QA])),
    "openai_parts": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Q?"}]}, ASSISTANT]},
        Example(QA),
    ),
    "openai_weights": (
        {"messages": [USER, ASSISTANT | {"weight": 0}, USER, ASSISTANT | {"weight": 1}]},
        Example([*QA, *QA], learned=[False, False, False, True]),
    ),
    "llama_factory": (
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "value": "Q?"}], "loss_weight": 0.0},
                {"role": "assistant", "content": [{"type": "text", "value": "A."}]},
                USER | {"loss_weight": 0.0},
                ASSISTANT | {"loss_weight": 0.0},
            ]
        },
        Example([*QA, *QA], learned=[False, True, False, False]),
    ),
    "openai_of_parquet": (  # a struct has all fields; those that are not there are null
        {"messages": [USER | {"weight": None}, ASSISTANT | {"weight": None, "tool_calls": None}]},
        Example(QA),
    ),
    "ends_with_a_user": ({"messages": [*QA, USER]}, Example(QA)),
    "chat_as_text": ({"conversations": json.dumps(QA)}, Example(QA)),
    "thoughts": (
        {"messages": [USER | {"thinking": None}, ASSISTANT | {"thinking": "Hm."}]},
        Example([USER, ASSISTANT | {"thinking": "Hm."}]),
    ),
    "rendered_whole": (
        {"text": "<|im_start|>user\nQ?<|im_end|>\n<|im_start|>assistant\nA.<|im_end|>\n"},
        Example(QA),
    ),
    "rendered": (
        {
            "prompt": "<|start_header_id|>user<|end_header_id|>\n\nQ?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
            "completion": "A.",
        },
        Example(QA),
    ),
    "aqua": (
        {"question": "Q?", "options": ["A)1", "B)2"], "rationale": "A.", "correct": "B"},
        Example([{"role": "user", "content": "Q?\n(A) 1\n(B) 2"}, ASSISTANT]),
    ),
    "trl": ({"prompt": "Q?", "completion": "A."}, Example(QA)),
    "trl_chat": (
        {"prompt": [*QA, USER], "completion": [ASSISTANT]},
        Example([*QA, *QA], learned=[False, False, False, True]),
    ),
    "chat_and_text": ({"input": [SYSTEM, USER], "output": "A."}, Example([SYSTEM, *QA])),
    "sharegpt": (
        {
            "conversations": [
                {"from": "system", "value": "S"},
                {"from": "human", "value": "Q?"},
                {"from": "gpt", "value": "A."},
            ]
        },
        Example([SYSTEM, *QA]),
    ),
    "sharegpt_tools": (
        {
            "system": "S",
            "conversations": [
                {"from": "human", "value": "Q?"},
                {"from": "function_call", "value": "f()"},
                {"from": "observation", "value": "3"},
                {"from": "gpt", "value": "A."},
            ],
        },
        Example(
            [
                SYSTEM,
                USER,
                {"role": "assistant", "content": "f()"},
                {"role": "tool", "content": "3"},
                ASSISTANT,
            ]
        ),
    ),
    "alpaca": ({"instruction": "Q?", "input": "", "output": "A."}, Example(QA)),
    "alpaca_input": (
        {"instruction": "Add.", "input": "1, 2", "output": "A."},
        Example([{"role": "user", "content": "Add.\n\n1, 2"}, ASSISTANT]),
    ),
    "alpaca_history": (
        {"instruction": "Q?", "input": "", "output": "A.", "history": [["Q?", "A."]]},
        Example([*QA, *QA], learned=[False, False, False, True]),
    ),
    "dolly": (
        {"instruction": "Q?", "context": "C", "response": "A.", "category": "open_qa"},
        Example([{"role": "user", "content": "Q?\n\nC"}, ASSISTANT]),
    ),
    "metamath": ({"query": "Q?", "response": "A.", "type": "x"}, Example(QA)),
    "numina": ({"problem": "Q?", "solution": "A.", "answer": "7", "source": "s"}, Example(QA)),
    "gsm8k": (
        {"question": "Q?", "answer": "3*4=<<3*4=12>>12\n#### 12"},
        Example([USER, {"role": "assistant", "content": "3*4=12\nThe answer is 12."}]),
    ),
    "openmathinstruct": (
        {"question": "Q?", "generated_solution": "A.", "expected_answer": "7", "is_correct": True},
        Example(QA),
    ),
    "openmathinstruct_program": (
        {
            "question": "Q?",
            "generated_solution": TOOL.replace("```python", "<llm-code>")
            .replace("```output", "<llm-code-output>")
            .replace("print(3)\n```", "print(3)\n</llm-code>")
            .replace("3\n```\nThe", "3\n</llm-code-output>\nThe"),
        },
        Example([USER, {"role": "assistant", "content": TOOL}], "tool"),
    ),
    "tool": (
        {"messages": [USER, {"role": "assistant", "content": TOOL}]},
        Example([USER, {"role": "assistant", "content": TOOL}], "tool"),
    ),
    "program": (
        {"instruction": "Q?", "output": PROGRAM},
        Example([USER, {"role": "assistant", "content": PROGRAM}], "pot"),
    ),
    "fenced_program": (
        {"prompt": "Q?", "completion": f"```python\n{PROGRAM}\n```"},
        Example([USER, {"role": "assistant", "content": PROGRAM}], "pot"),
    ),
    "verl": (
        {
            "prompt": [{"role": "user", "content": "Q? Think."}],
            "reward_model": {"ground_truth": "A."},
            "extra_info": {"question": "Q?", "answer": "A.", "index": 1},
        },
        Example(QA),
    ),
    "capybara": ({"source": "s", "conversation": [{"input": "Q?", "output": "A."}]}, Example(QA)),
    "xtuner": (
        {"conversation": [{"system": "S", "input": "Q?", "output": "A."}] * 2},
        Example([SYSTEM, *QA, *QA]),
    ),
    "ultrachat": ({"id": "1", "data": ["Q?", "A.", "Q?", "A."]}, Example([*QA, *QA])),
    "capitals": ({"Question": "Q?", "Answer": "A."}, Example(QA)),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(tmp_path, name):
    """The same example as a line, in a list, with other columns, and in another order of columns."""
    row, expected = LAYOUTS[name]
    path = tmp_path / "f.jsonl"
    path.write_text(json.dumps(row) + "\n" + json.dumps(row) + "\n")
    assert list(load_examples(path)) == [(f"{path}:1", expected), (f"{path}:2", expected)]

    rng = random.Random(name)
    columns = [
        *row.items(),
        ("number", 7),
        ("source", "s"),
        ("tags", ["a", "b"]),
        ("extra", {"a": 1}),
    ]
    for _ in range(5):
        rng.shuffle(columns)
        (tmp_path / "f.json").write_text(json.dumps([dict(columns)], indent=1))
        assert [example for _, example in load_examples(tmp_path / "f.json")] == [expected]


@pytest.mark.parametrize(
    "row, message",
    [
        ({"text": "A page."}, "no question among text; a row needs question and response; mess"),
        ({"question": "Q?"}, "no response among question; a row needs"),
        ({"question": "Q?", "response": " "}, "no response among question, response; a row needs"),
        ({"question": 3, "response": "A"}, "no question"),
        ({"messages": [USER]}, "no message of the assistant"),
        (
            {"messages": [{"role": "wizard", "content": "A"}]},
            "message 1 has the role 'wizard'; use",
        ),
        ({"messages": [USER, {"role": "assistant", "content": None}]}, "message 2 has no text"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, ASSISTANT]},
            "message 1 has no text",
        ),
        ({"question": "Q", "response": "A", "format": "cat"}, "format 'cat' is unknown; use cot, "),
        (
            {"question": "Q", "generated_solution": "A", "is_correct": False},
            "'is_correct' is false",
        ),
        ({"messages": [USER, ASSISTANT], "label": False}, "'label' is false; remove rows with"),
        ({"messages": [USER, ASSISTANT], "image": "a.png"}, "it has 'image', and only texts can"),
        (
            {"messages": [USER, ASSISTANT, USER], "chosen": ASSISTANT, "rejected": ASSISTANT},
            "a preference pair, without a message of the assistant before it; give it to train_dpo",
        ),
        (
            {"instruction": "Q", "output": "A", "history": True},
            "'history' is not a list of pairs",
        ),
        ({"instruction": "Q", "output": "A", "history": [["B"]]}, "'history' is not a list of pa"),
        ([1], "not a JSON object"),
    ],
)
def test_what_is_no_example(tmp_path, row, message):
    path = tmp_path / "f.jsonl"
    good = json.dumps({"question": "Q?", "response": "A."})
    path.write_text(f"{good}\n\n{json.dumps(row)}\n")
    with pytest.raises(InputError) as error:
        list(load_examples(path))
    assert str(error.value).startswith(f"{path}:3: {message}")
    assert "\n" not in str(error.value)


def test_an_answer_that_is_not_learned_is_refused_without_a_chat_template(tmp_path):
    path = tmp_path / "f.jsonl"
    path.write_text(json.dumps({"messages": [USER, ASSISTANT | {"weight": 0}]}))
    [(where, example)] = load_examples(path)
    with pytest.raises(InputError, match="the answer is not to be learned"):
        example.question_and_response(where)
