"""batch.py: shared and plain layouts give the log-probs and gradients of one sequence at a time."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from batch import cut_group, pack_completions, token_logprobs, token_scores
from model import ModelConfig, Transformer

V = 20
IDS = st.integers(0, V - 1)
GROUP = st.tuples(
    st.lists(IDS, min_size=1, max_size=6),
    st.lists(st.lists(IDS, min_size=1, max_size=6), min_size=1, max_size=5),
)


@pytest.fixture(scope="module", params=[{}, {"tied": True, "qk_norm": True, "qkv_bias": True}])
def model(request):
    model = Transformer(
        ModelConfig(V, width=32, layers=2, heads=4, kv_heads=2, ffn=48, context=64, **request.param)
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():  # uneven distributions, and biases that do something
            p.normal_(0, p.shape[-1] ** -0.5, generator=generator) if p.dim() == 2 else p.add_(0.1)
    return model


def naive(model, groups, temperature):
    """(log-probs, entropies) of all completion tokens in order, a forward of its own for each completion."""
    logp, entropy = [], []
    for prompt, completions in groups:
        for ids in completions:
            logits = model.logits(model(torch.tensor(prompt + ids)))[len(prompt) - 1 : -1]
            rows = torch.log_softmax(logits / temperature, dim=-1)
            logp.append(rows[torch.arange(len(ids)), ids])
            entropy.append(-(rows.exp() * rows).sum(dim=-1))
    return torch.cat(logp), torch.cat(entropy)


def test_the_modules_example():
    batch = pack_completions([([5, 6, 7], [[8, 9], [4, 3, 2]])])
    assert batch.ids.tolist() == [5, 6, 7, 8, 4, 3]
    assert batch.layout.positions.tolist() == [0, 1, 2, 3, 3, 4]
    assert batch.index.tolist() == [2, 3, 2, 4, 5]
    assert batch.targets.tolist() == [8, 9, 4, 3, 2]
    assert batch.completion.tolist() == [0, 0, 1, 1, 1]


def test_the_example_plain_and_beside_other_groups():
    batch = pack_completions([([5, 6, 7], [[8, 9], [4, 3, 2]])], shared=False)
    assert batch.ids.tolist() == [5, 6, 7, 8, 5, 6, 7, 4, 3]
    assert batch.layout.positions.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 4]
    assert batch.index.tolist() == [2, 3, 6, 7, 8]
    assert batch.targets.tolist() == [8, 9, 4, 3, 2]

    batch = pack_completions(
        [([1], [[2, 3]]), ([4, 5], [[6], [7], [8, 9]])]
    )  # a group of one is plain
    assert batch.ids.tolist() == [1, 2, 4, 5, 8]
    assert batch.layout.positions.tolist() == [0, 1, 0, 1, 2]
    assert batch.index.tolist() == [0, 1, 3, 3, 3, 4]
    assert batch.targets.tolist() == [2, 3, 6, 7, 8, 9]
    assert batch.completion.tolist() == [0, 0, 1, 2, 3, 3]


@settings(max_examples=25)
@given(st.lists(GROUP, min_size=1, max_size=4), st.sampled_from([1.0, 0.7]), st.randoms())
@example([([3], [[4], [5], [6]])], 1.0, None)  # completions of one token: only the prompt is fed
@example(
    [([3], [[4]]), ([7, 8], [[9], [1, 2, 3, 4, 5, 6]]), ([2, 2, 2], [[1, 1], [1, 1]])], 0.7, None
)
def test_shared_plain_and_naive_agree(model, groups, temperature, random):
    parameters = list(model.parameters())
    expected, expected_entropy = naive(model, groups, temperature)
    weights = torch.tensor(
        [random.uniform(-1, 1) if random else (-1.0) ** i * (i + 1) for i in range(len(expected))]
    )
    expected_grads = torch.autograd.grad((weights * expected).sum(), parameters)
    for shared in (True, False):
        batch = pack_completions(groups, shared)
        logp, entropy = token_logprobs(model, batch, temperature, entropy=True)
        assert logp.dtype == torch.float32
        torch.testing.assert_close(logp, expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(entropy, expected_entropy, atol=1e-5, rtol=0)
        grads = torch.autograd.grad((weights * logp).sum(), parameters)
        for (name, _), grad, other in zip(
            model.named_parameters(), grads, expected_grads, strict=True
        ):
            scale = max(1.0, other.abs().max().item())
            assert (grad - other).abs().max() < 1e-5 * scale, name
        lengths = [len(ids) for _, completions in groups for ids in completions]
        assert torch.bincount(batch.completion).tolist() == lengths
        fed = sum(lengths) - len(lengths)  # the last token of a completion is never fed
        assert len(batch.ids) == fed + sum(
            len(prompt) * (1 if shared else len(c)) for prompt, c in groups
        )


def test_entropy_only_when_asked(model):
    assert token_logprobs(model, pack_completions([([1], [[2]])]))[1] is None


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("group", [([], [[1]]), ([], [[1], [2]]), ([1], [[]]), ([1], [[2], []])])
def test_nothing_may_be_empty(group, shared):
    with pytest.raises(ValueError, match="at least one token"):
        pack_completions([([1], [[2], [3]]), group], shared)


@settings(max_examples=30)
@given(st.lists(GROUP, min_size=1, max_size=4), st.data())
def test_token_scores_are_those_of_the_sequence_alone(groups, data):
    scorer = Transformer(
        ModelConfig(V, width=32, layers=2, heads=4, kv_heads=2, ffn=48, context=64, score="value")
    )
    with torch.no_grad():
        scorer.score.weight.normal_(generator=torch.Generator().manual_seed(2))
        scorer.score.bias.fill_(0.5)
        completions = [(prompt, ids) for prompt, own in groups for ids in own]
        places = [
            data.draw(st.lists(st.integers(-1, len(ids) - 1), max_size=4)) for _, ids in completions
        ]
        expected = [
            scorer.score(scorer(torch.tensor(prompt + ids)))[len(prompt) + place, 0]
            for (prompt, ids), own in zip(completions, places, strict=True)
            for place in own
        ]
        found = token_scores(scorer, groups, places)
    torch.testing.assert_close(
        found, torch.stack(expected) if expected else found, atol=5e-5, rtol=0
    )
    assert len(found) == len(expected)


@given(GROUP, st.integers(1, 40))
def test_groups_are_cut_to_the_budget(group, budget):
    prompt, completions = group
    parts = cut_group(prompt, completions, budget)
    assert [number for part in parts for number in part] == list(range(len(completions)))
    sizes = [len(prompt) + sum(len(completions[g]) for g in part) for part in parts]
    assert all(size <= budget or len(part) == 1 for size, part in zip(sizes, parts, strict=True))
    for size, after in zip(sizes, parts[1:], strict=False):  # none is cut that had room
        assert size + len(completions[after[0]]) > budget
