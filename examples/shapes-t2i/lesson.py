"""Teach the text encoder where each word's object stands, from sentences alone.

"left of" turns round what comes first: which side an object takes is the exclusive or of its order in the sentence and the relation.
Gradients through the pictures stayed on that plateau for 2500 steps, with colours and shapes swapped or mixed; with the order as a
task of its own the text encoder leaves it after 200 steps of 0.1 s.
"""

import random

import grammar
import model
import torch
from torch import nn

STEPS = 750
BATCH = 256
RATE = 2e-3
PAIRS_SHARE = 0.8
SIDES = {"left of": ("left", "right"), "right of": ("right", "left"), "above": ("top", "bottom"), "below": ("bottom", "top")}
IGNORED = -100
_DESCRIBING = {*grammar.SIZES, *grammar.COLOURS, *grammar.SHAPES}


def labels(prompt: grammar.Prompt) -> tuple[list[int], list[int]]:
    """Return, for each token that describes an object, the object's place and, of two, its order; IGNORED for the rest.

    The sides of pairs are classes of their own.
    """
    places, orders = [IGNORED] * grammar.MOST_TOKENS, [IGNORED] * grammar.MOST_TOKENS
    first_words = len(prompt.things[0].words().split())
    for position, word in enumerate(prompt.text().split()):
        if word in _DESCRIBING:
            order = int(position >= first_words)
            place = SIDES[prompt.relation][order] if prompt.relation else prompt.place
            assert place is not None
            places[position] = grammar.PLACES.index(place) + (len(grammar.PLACES) if prompt.relation else 0)
            orders[position] = order if prompt.relation else IGNORED
    return places, orders


def teach(text_encoder: nn.Module) -> None:
    """Train the text encoder in place; prints the loss now and then."""
    torch.manual_seed(0)
    tokenizer = model.new_tokenizer()
    heads = nn.Linear(model.TEXT_WIDTH, 2 * len(grammar.PLACES)), nn.Linear(model.TEXT_WIDTH, 2)
    parameters = [parameter for module in (text_encoder, *heads) for parameter in module.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, betas=(0.9, 0.99))
    for step in range(STEPS):
        rng = random.Random(f"lesson {step}")
        prompts = [
            grammar.random_pair(rng, held_out=False) if rng.random() < PAIRS_SHARE else grammar.random_single(rng) for _ in range(BATCH)
        ]
        texts = [prompt.text() for prompt in prompts]
        tokens = tokenizer(texts, padding="max_length", max_length=grammar.MOST_TOKENS, return_tensors="pt").input_ids
        hidden = text_encoder(input_ids=tokens, attention_mask=(tokens != 0).float()).last_hidden_state
        targets = torch.tensor([labels(prompt) for prompt in prompts]).unbind(1)
        losses = [
            nn.functional.cross_entropy(head(hidden).flatten(0, 1), target.flatten(), ignore_index=IGNORED)
            for head, target in zip(heads, targets, strict=True)
        ]
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if (step + 1) % 50 == 0:
            print(f"lesson {step + 1} place {float(losses[0].detach()):.4f} order {float(losses[1].detach()):.4f}", flush=True)
    text_encoder.zero_grad()
