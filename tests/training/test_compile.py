"""Compiled towers are compiled for the first steps and not again: not for longer texts, nor behind an evaluation."""

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from tests.helpers.counts import soak_count
from tests.helpers.steps import configure, make_batch, make_train_step

WARM_UP, STEPS = 3, 40


# Behind so many compilations it would no longer compile, without a word.
@torch._dynamo.config.patch(fail_on_recompile_limit_hit=True)
@pytest.mark.slow
@pytest.mark.skipif(not soak_count(False, True), reason="half a minute of tracing: make soak")
@pytest.mark.parametrize("micro", ["10", "null"])
def test_nothing_is_compiled_again_behind_the_first_steps(tmp_path, monkeypatch, micro):
    """Micro-batches of 10, 10 and 4 pairs, in chunks of 1 to 16 tokens, of one text and of many."""
    counter, compile_in_place = CompileCounter(), nn.Module.compile

    def compile_for_test(module, **options):
        compile_in_place(module, **{**options, "backend": counter})

    monkeypatch.setattr(nn.Module, "compile", compile_for_test)
    torch._dynamo.reset()
    config = configure(tmp_path, ["torch_compile=true", f"micro_batch_size={micro}"])
    train_step = make_train_step(config, torch.float32)
    draw, compiled = np.random.default_rng(0), []
    for step in range(STEPS):
        batch = make_batch(seed=step)
        batch.captions[:] = [" ".join(["red"] * int(draw.integers(1, 14))) for _ in batch.captions]
        train_step.update(batch, step % 4)
        if step % 2 == 0:
            train_step.model.eval()
            with torch.no_grad():
                train_step.model.encode_image(torch.rand(1 + step, 3, 16, 16))
        compiled.append(counter.frame_count)
    assert compiled[WARM_UP - 1] > 0 and compiled[WARM_UP:] == [compiled[WARM_UP - 1]] * (STEPS - WARM_UP), compiled
