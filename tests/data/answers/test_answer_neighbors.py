"""Strict mode is sharp: 1,000 answers and answers that are nearly the same, properties of random
pairs, hostile strings, and the gold answers of the benchmarks."""

import csv
import json
import random
import time

import pytest
from answer_strategies import category_makers, hostile, neighbors

from data.answers import choice, compare, extract


def generated(rng, per_category=20):
    return [
        (name, *make()) for name, make in category_makers(rng).items() for _ in range(per_category)
    ]


def assert_sharp(answers, rng):
    wrong = 0
    for answer in answers:
        for neighbor in neighbors(answer, rng):
            wrong += 1
            assert not compare(answer, neighbor, strict=True).equal, (answer, neighbor)
            assert not compare(neighbor, answer, strict=True).equal, (neighbor, answer)
    return wrong


def test_every_wrong_neighbor_of_generated_answers_is_rejected():
    rng = random.Random(11)
    answers = generated(rng)
    assert len({name for name, _, _ in answers}) >= 26 and len(answers) >= 520
    assert assert_sharp([answer for _, answer, _ in answers], rng) > 1500
    for _, answer, other in answers:  # another notation of the same value is accepted
        assert compare(answer, answer, strict=True).equal
        assert (
            not other
            or compare(answer, other, strict=True).equal
            and compare(other, answer, strict=True).equal
        )


def lines(path):
    return [json.loads(line) for line in path.open(encoding="utf-8")]


GOLDS = {  # file -> the gold answers
    "gsm8k/test.jsonl": lambda p: [row["answer"].split("####")[1].strip() for row in lines(p)],
    "gsm8k/train.jsonl": lambda p: [row["answer"].split("####")[1].strip() for row in lines(p)],
    "deepseek-math-eval/cmath/test.jsonl": lambda p: [row["golden"] for row in lines(p)],
    "deepseek-math-eval/mgsm_zh/mgsm_zh.jsonl": lambda p: [row["answer"] for row in lines(p)],
    "deepseek-math-eval/agieval/gaokao-mathcloze.jsonl": lambda p: [
        row["answer"] for row in lines(p)
    ],
    "deepseek-math-eval/agieval/gaokao-mathqa.jsonl": lambda p: [row["label"] for row in lines(p)],
    "deepseek-math-eval/mmlu_stem/test.jsonl": lambda p: [row["answer"] for row in lines(p)],
    "agieval/sat-math.jsonl": lambda p: [row["label"] for row in lines(p)],
    "agieval/aqua-rat.jsonl": lambda p: [row["label"] for row in lines(p)],
    "tool-integrated/tora-code-34b-v1.0-gsm8k-test.jsonl": lambda p: [
        row["gt"] for row in lines(p)
    ],
    "word-problems/SVAMP.json": lambda p: [str(row["Answer"]) for row in json.loads(p.read_text())],
    "mmlu": lambda p: [
        row[5] for f in p.glob("*/*.csv") for row in csv.reader(f.open(encoding="utf-8"))
    ],
    "mgsm": lambda p: [
        line.rstrip("\n").split("\t")[1]
        for f in p.glob("*.tsv")
        for line in f.open(encoding="utf-8")
    ],
    "bbh/bbh": lambda p: [
        row["target"] for f in p.glob("*.json") for row in json.loads(f.read_text())["examples"]
    ],
}


@pytest.mark.parametrize("name", GOLDS)
def test_gold_answers_equal_themselves_and_are_found_again(real, name):
    golds = sorted(set(GOLDS[name](real(name))))
    assert len(golds) > 3
    for gold in golds:
        texts = [
            f"So it is.\nThe answer is {gold}.",
            f"#### {gold}",
            f"所以答案是{gold}。",
            f"Final Answer: The final answer is ${gold.replace('$', '')}$. I hope it is correct.",
        ]
        if (
            "{" not in gold.replace("\\{", "") and "}" not in gold or "\\" in gold
        ):  # a single brace does not fit in a box
            texts.append(rf"So it is $\boxed{{{gold.replace('$', '')}}}$.")
        for strict in (False, True):
            assert compare(gold, gold + " ", strict).equal
            for text in texts:
                assert compare(gold, extract(text), strict).equal, (gold, text, extract(text))


def test_every_wrong_neighbor_of_real_answers_is_rejected(real):
    rng = random.Random(12)
    golds = {
        gold
        for name in GOLDS
        for gold in GOLDS[name](real(name))
        if neighbors(gold, rng) and "/0" not in gold
    }
    golds = rng.sample(sorted(golds), 500)
    assert assert_sharp([gold for gold in golds if not gold.startswith("0")], rng) > 1000


def test_symmetric_and_reflexive_over_random_pairs():
    rng = random.Random(13)
    pool = [text for _, answer, other in generated(rng, 6) for text in (answer, other) if text]
    pool += [hostile(rng, pool) for _ in range(100)]
    for _ in range(4000):
        a, b = rng.choice(pool), rng.choice(pool)
        for strict in (False, True):
            forth, back = compare(a, b, strict), compare(b, a, strict)
            assert forth.equal == back.equal, (a, b, strict)
        if compare(a, b, strict=True).equal:
            assert compare(a, b).equal, (a, b)  # relaxed mode accepts more, never less
    for a in pool:
        assert not a.strip() or compare(a, a).equal and compare(a, a + " ", strict=True).equal


def test_hostile_strings_neither_raise_nor_take_long():
    rng = random.Random(14)
    seeds = [answer for _, answer, _ in generated(rng, 4)]
    slowest = 0
    for k in range(10_000):
        text, gold = hostile(rng, seeds), rng.choice(seeds)
        start = time.process_time()
        found = extract(text, fallback_last_number=True)
        compare(gold, text if k % 2 else found, strict=bool(k % 3))
        if k % 10 == 0:
            choice(text, seeds[:4]), compare(text, text + "1")
        slowest = max(slowest, time.process_time() - start)
    assert slowest < 1
