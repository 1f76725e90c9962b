"""The cadences that a budget leads to, on steps of known cost."""

from __future__ import annotations

import numpy as np
import pytest
from gradspectra.budget import COARSEST_UNSURE, LARGEST_PIECE, WARMUP_STEPS, Budget


def run(budget, steps, step=0.1, base=0.0001, layers=0.003, spectrum=0.001, slow=lambda _: 1.0):
    """Follow the budget for some steps; gives the cost of the agent and the steps with layers and with a spectrum."""
    spent, measured, spectra = 0.0, [], []
    for number in range(1, steps + 1):
        factor = slow(number)
        due = budget.due(number)
        taken = budget.pays(spectrum)
        own = base + (layers if due else 0.0) + (spectrum if taken else 0.0)
        spent += own
        measured += [number] if due else []
        spectra += [number] if taken else []
        budget.step_done(
            (step + own) * factor,
            base * factor,
            layers * factor if due else None,
            spectrum * factor if taken else 0.0,
            0.0,
        )
    return spent, measured, spectra


def test_the_budget_is_kept_with_layers_and_spectra_in_it():
    budget = Budget(0.01, 1, True)
    run(budget, 50)
    spent, measured, spectra = run(budget, 800)
    assert spent < 0.01 * 800 * 0.1
    assert spent > 0.006 * 800 * 0.1
    assert budget.cadence == 8
    assert len(measured) == 101
    assert len(spectra) > 200


def test_without_a_budget_every_step_asked_for_is_measured_at_any_cost():
    budget = Budget(None, 3, True)
    _, measured, spectra = run(budget, 30, layers=1.0)
    assert measured == list(range(3, 31, 3))
    assert len(spectra) == 30


@pytest.mark.parametrize(("layers", "cadence"), [(0.0002, 1), (0.0009, 4), (0.003, 8), (0.02, 32)])
def test_the_cadence_is_the_finest_power_of_two_that_fits(layers, cadence):
    budget = Budget(0.01, 1, True)
    run(budget, 600, layers=layers)
    assert budget.cadence == cadence


def test_cadences_are_multiples_of_every():
    budget = Budget(0.01, 5, True)
    _, measured, _ = run(budget, 400)
    assert budget.cadence == 10
    assert all(step % 5 == 0 for step in measured)


def test_a_machine_busy_with_other_things_for_a_while_changes_nothing():
    budget = Budget(0.01, 1, True)
    run(budget, 100)
    cadence = budget.cadence
    run(budget, 100, slow=lambda number: 8.0 if number % 50 < 25 else 1.0)
    assert budget.cadence == cadence


def test_one_slow_first_measurement_does_not_silence_the_layers():
    budget = Budget(0.01, 1, True)
    run(budget, WARMUP_STEPS + 1, layers=5.0)
    assert budget.cadence <= COARSEST_UNSURE
    run(budget, 200)
    assert budget.cadence == 8


def test_on_steps_that_are_too_short_for_the_agent_the_tiers_keep_half_of_the_share():
    budget = Budget(0.01, 1, True)
    run(budget, 100, step=0.002)
    _, measured, spectra = run(budget, 3000, step=0.002)
    assert 0.2 * 0.005 * 3000 * 0.002 < len(measured) * 0.003 < 0.005 * 3000 * 0.002
    assert spectra == []


def test_hooks_that_take_the_whole_share_do_not_silence_the_layers():
    budget = Budget(0.01, 1, True)
    run(budget, 100, base=0.0015)
    _, measured, spectra = run(budget, 800, base=0.0015)
    assert budget.cadence == 8
    assert len(measured) == 101
    assert len(spectra) * 0.001 < 0.0055 * 800 * 0.1


def test_records_every_eighth_step_may_overdraw_the_share_but_not_by_more_than_two_fifths():
    budget = Budget(0.01, 1, True)
    run(budget, 400, base=0.0001, layers=0.009)
    assert budget.cadence == 8
    run(budget, 400, base=0.0001, layers=0.012)
    assert budget.cadence == 16


def test_savings_never_buy_a_piece_larger_than_a_twentieth_of_a_step():
    budget = Budget(0.5, 1, True)
    run(budget, 100, layers=0.0001, spectrum=1.0)
    assert budget.savings <= LARGEST_PIECE
    assert not budget.pays(1.01 * LARGEST_PIECE * budget.step_seconds)
    assert budget.too_large(1.01 * LARGEST_PIECE * budget.step_seconds)
    assert budget.pays(0.9 * LARGEST_PIECE * budget.step_seconds)


def test_the_overhead_is_what_was_spent_of_the_time():
    budget = Budget(None, 2, True)
    for number in range(1, 11):
        budget.step_done(0.1, 0.001, 0.004 if number % 2 == 0 else None, 0.002, 0.001)
    assert budget.overhead == pytest.approx((10 * 0.004 + 5 * 0.004) / 1.0)
    before = budget.overhead
    budget.step_done(None, 1.0, 1.0, 1.0, 1.0)
    assert budget.overhead == before


def parts_of(budget, steps, parts, layers=0.0008, spectrum=0.001):
    """Follow the budget with squares of parts that cost this much; gives the agent's cost and the steps with parts."""
    spent, found = 0.0, []
    for number in range(1, steps + 1):
        due, paid = budget.due(number), budget.pays(spectrum)
        of_parts = parts if due and budget.parts_due(number) else None
        own = 0.0001 + (layers if due else 0.0) + (of_parts or 0.0) + (spectrum if paid else 0.0)
        spent += own
        found += [number] if of_parts else []
        budget.step_done(0.1 + own, 0.0001, layers if due else None, spectrum if paid else 0.0, 0.0, parts=of_parts)
    return spent, found


@pytest.mark.parametrize(("parts", "cadence"), [(0.0001, 8), (0.002, 16), (0.02, 64)])
def test_parts_have_a_cadence_of_their_own_so_that_dear_ones_do_not_make_layer_numbers_rare(parts, cadence):
    budget = Budget(0.01, 1, True)
    parts_of(budget, 100, parts)
    spent, found = parts_of(budget, 800, parts)
    assert budget.cadence == (8 if parts > 0.0001 else 4)
    assert budget.parts_cadence == cadence
    assert set(np.diff(found)) <= {cadence - 1, cadence}
    assert len(found) in (800 // cadence, 800 // cadence + 1, 800 // cadence + 2)
    assert spent < 0.01 * 800 * 0.1


def test_without_a_budget_all_parts_are_measured():
    budget = Budget(None, 1, True)
    assert parts_of(budget, 40, 0.02)[1] == list(range(1, 41))
