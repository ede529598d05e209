"""The reference pipeline: its language, its detector and the trained weights."""

import random
from pathlib import Path

import detector
import evaluate
import grammar
import lesson
import make_prompts
import numpy as np
import pictures
import pytest
import render
import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from hypothesis import given, settings
from hypothesis import strategies as st

EXAMPLE = Path(__file__).parents[2] / "examples" / "shapes-t2i"
PIPELINE = EXAMPLE / "pipeline"

sizes = st.sampled_from((*grammar.SIZES, None))
things = st.builds(grammar.Thing, st.sampled_from(grammar.COLOURS), st.sampled_from(grammar.SHAPES), sizes)
singles = st.builds(grammar.Prompt, st.tuples(things), st.sampled_from((*grammar.PLACES, None)))
pairs = st.builds(
    lambda first, second, relation: grammar.Prompt((first, second), None, relation), things, things, st.sampled_from(grammar.RELATIONS)
).filter(lambda prompt: prompt.things[0].colour != prompt.things[1].colour)


@given(st.one_of(singles, pairs))
def test_every_prompt_reads_back(prompt):
    text = prompt.text()
    assert grammar.parse(text) == prompt
    assert grammar.parse(f"  {text.upper().replace(' ', '  ')} ") == prompt
    assert set(text.split()) <= set(grammar.words())


def test_the_grammar_is_small():
    assert len(grammar.words()) <= 60


def test_a_sentence_outside_the_grammar_is_an_error():
    with pytest.raises(ValueError, match="not a sentence of the grammar: 'a red dog'"):
        grammar.parse("a red dog")


def test_prompt_files_are_what_the_grammar_makes():
    for name, prompts in make_prompts.prompt_files().items():
        assert (EXAMPLE / "prompts" / name).read_text().splitlines() == prompts


def test_held_out_prompts_are_never_drawn_for_training():
    held_out = {
        prompt for name in ("heldout-one.txt", "heldout-two.txt") for prompt in (EXAMPLE / "prompts" / name).read_text().splitlines()
    }
    assert len(held_out) == 2 * make_prompts.HELD_OUT
    assert not held_out & set(grammar.one_object_prompts(held_out=False))
    rng = random.Random(0)
    kept = grammar.held_out_triples()
    for _ in range(3000):
        single, pair = grammar.random_single(rng), grammar.random_pair(rng, held_out=False)
        assert (single.things[0].colour, single.things[0].shape, single.place) not in kept
        assert not grammar.is_held_out_pair(pair.things[0], pair.relation, pair.things[1])
        assert single.text() not in held_out
        assert pair.text() not in held_out


def test_the_lesson_says_where_each_word_stands():
    places, orders = lesson.labels(grammar.parse("a red circle right of a large blue square"))
    left, right, none = 9 + grammar.PLACES.index("left"), 9 + grammar.PLACES.index("right"), lesson.IGNORED
    assert places == [none, right, right, none, none, none, left, left, left, none, none, none]
    assert orders == [none, 0, 0, none, none, none, 1, 1, 1, none, none, none]
    places, orders = lesson.labels(grammar.parse("a red circle at the top left"))
    assert places[1:3] == [grammar.PLACES.index("top left")] * 2
    assert set(orders) == {none}


def test_a_seed_gives_the_same_pictures():
    first, second = pictures.batch(4, "seed"), pictures.batch(4, "seed")
    assert first[0] == second[0]
    assert bool((first[1] == second[1]).all())


@settings(max_examples=150, deadline=None)
@given(st.one_of(singles, pairs), st.integers(0, 2**32))
def test_the_detector_reads_every_drawn_picture(prompt, seed):
    figures, _ = render.arrange(prompt, random.Random(seed))
    picture = render.draw(figures)
    found = detector.detect(picture)
    assert len(found) == len(prompt.things)
    assert detector.score(prompt.text(), picture) == 1


@pytest.mark.parametrize(
    ("prompt", "wrong"),
    [
        ("a small red circle at the top left", set()),
        ("a small red circle", set()),
        ("a blue circle at the top left", {"colour"}),
        ("a small red square at the top left", {"shape"}),
        ("a large red circle at the top left", {"size"}),
        ("a small red circle at the top", {"place"}),
        ("a large green ring at the bottom", {"colour", "shape", "size", "place"}),
    ],
)
def test_the_detector_names_what_is_wrong_with_one_object(prompt, wrong):
    picture = render.draw(render.arrange(grammar.parse("a small red circle at the top left"), random.Random(1))[0])
    right = detector.attributes(grammar.parse(prompt), detector.detect(picture))
    assert {name for name, value in right.items() if not value} == wrong
    assert detector.score(prompt, picture) == pytest.approx(1 - len(wrong) / len(right))


@pytest.mark.parametrize(
    ("prompt", "wrong"),
    [
        ("a red circle left of a large blue square", set()),
        ("a large blue square right of a red circle", set()),
        ("a red circle right of a large blue square", {"relation"}),
        ("a red circle above a large blue square", {"relation"}),
        ("a red circle left of a small blue square", {"second size"}),
        ("a red circle left of a blue ring", {"second shape"}),
        ("a green circle left of a blue square", {"first colour"}),
    ],
)
def test_the_detector_names_what_is_wrong_with_two_objects(prompt, wrong):
    picture = render.draw(render.arrange(grammar.parse("a red circle left of a large blue square"), random.Random(1))[0])
    right = detector.attributes(grammar.parse(prompt), detector.detect(picture))
    assert {name for name, value in right.items() if not value} == wrong


def test_a_missing_object_is_wrong_in_everything():
    empty = np.full((64, 64, 3), render.BACKGROUND, dtype=np.uint8)
    assert detector.score("a small red circle at the top left", empty) == 0
    assert detector.score("a red circle left of a blue square", empty) == 0
    alone = render.draw(render.arrange(grammar.parse("a red circle at the left"), random.Random(1))[0])
    assert detector.score("a red circle left of a blue square", alone) == pytest.approx(2 / 5)


def test_a_picture_of_another_kind_is_an_error():
    with pytest.raises(ValueError, match=r"expected a uint8 picture of shape \(64, 64, 3\), got float64 \(64, 64, 3\)"):
        detector.detect(np.zeros((64, 64, 3)))


def test_the_report_counts_by_attribute():
    picture = render.draw(render.arrange(grammar.parse("a small red circle at the top left"), random.Random(1))[0])
    result = evaluate.report(["a small red circle at the top left", "a small red ring"], [picture, picture])
    assert result["scores"] == [1, pytest.approx(2 / 3)]
    assert result["score"] == pytest.approx(5 / 6)
    assert result["attributes"] == {"colour": 1, "shape": 0.5, "size": 1, "place": 1}
    assert result["interval_95"][0] <= result["score"] <= result["interval_95"][1]


@pytest.fixture(scope="module")
def pipeline():
    loaded = DiffusionPipeline.from_pretrained(PIPELINE)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def test_the_pipeline_is_small():
    assert sum(file.stat().st_size for file in PIPELINE.rglob("*") if file.is_file()) <= 12e6


def test_unknown_words_become_one_unknown_token_each(pipeline):
    known = pipeline.tokenizer("a red circle").input_ids
    assert pipeline.tokenizer.unk_token_id not in known
    assert pipeline.tokenizer("a zebra circle").input_ids == [known[0], pipeline.tokenizer.unk_token_id, *known[2:]]


def test_padding_changes_nothing(pipeline):
    prompt = "a small red circle at the top left"
    arguments = {"num_inference_steps": 4, "use_resolution_binning": False, "output_type": "np"}
    short, long = (
        pipeline(prompt, max_sequence_length=length, generator=torch.Generator().manual_seed(0), **arguments).images for length in (12, 120)
    )
    assert np.abs(short - long).max() < 1e-3


def test_the_pipeline_draws_what_prompts_say(pipeline):
    prompts = (EXAMPLE / "prompts" / "heldout-one.txt").read_text().splitlines()[:8]
    assert evaluate.report(prompts, evaluate.generate(pipeline, prompts))["score"] > 0.8


def test_a_scheduler_that_could_clip_does_not(pipeline):
    assert DDIMScheduler.from_config(pipeline.scheduler.config).config.clip_sample is False


def test_a_plain_load_has_one_type(pipeline):
    assert {part.dtype for part in (pipeline.text_encoder, pipeline.transformer, pipeline.vae)} == {torch.float32}
