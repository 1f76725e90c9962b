"""What each alert rule means and what people do about it: the text that travels with every alert."""

from __future__ import annotations

from dataclasses import dataclass

from gradspectra_core.alerts import Finding, alert_id


@dataclass(frozen=True, slots=True)
class RuleText:
    """The words of one rule, and what it reads.

    severity: of its least severe alert; source: where rule or remedy come from. needs: series and layer statistics of
    which it takes one at least; uses: what it takes into account too where that is recorded.
    """

    name: str
    severity: str
    meaning: str
    remedy: str
    source: str
    needs: tuple[str, ...]
    uses: tuple[str, ...] = ()


RULES: dict[str, RuleText] = {
    rule.name: rule
    for rule in (
        RuleText(
            "nonfinite",
            "critical",
            "A loss, gradient or weight is NaN or infinite. From here on every weight that such a gradient reaches is "
            "lost, and no later step repairs it.",
            "Stop and resume from a checkpoint before the first step shown. Then lower the learning rate, clip the "
            "gradient, look at that step's data, and at divisions, logarithms and softmax in the layer named; with "
            "float16 use a loss scaler, or bfloat16.",
            "Micikevicius et al. 2018, Mixed Precision Training (overflow and loss scaling)",
            ("loss", "grad_norm", "grad_nonfinite", "grad_sq", "weight_sq"),
            ("act_nonfinite", "skipped"),
        ),
        RuleText(
            "divergence",
            "critical",
            "The loss has left the level that it had come down to, or where it started, and stays above. Nothing says "
            "that it will come back by itself; each further step moves the weights away from where they were good.",
            "Resume from a checkpoint before the loss began to rise, with a lower learning rate, a longer warm-up or "
            "the gradient clipped at 1.0. If nothing of the sort helps, look for a change in the data or in what the "
            "loss is made of: then the new level may be right, and the alert closes as settled.",
            "Wortsman et al. 2023, Small-scale proxies (a loss that diverges above a learning rate); median of 50",
            ("loss",),
            ("learning_rate",),
        ),
        RuleText(
            "loss_spike",
            "warning",
            "The loss jumped far above what its last 50 points spread over. Most spikes come back by themselves; those "
            "that do not are the start of a divergence.",
            "If it does not come back within some tens of steps, resume from a checkpoint about 100 steps earlier and "
            "skip the data of these steps. If it repeats: lower the peak learning rate or lengthen warm-up, clip the "
            "gradient at 1.0, lower Adam's beta2.",
            "Chowdhery et al. 2022, PaLM, section 5.1 (restart and skip data); robust z of ln loss over 50 points",
            ("loss",),
        ),
        RuleText(
            "gradient_spike",
            "warning",
            "The gradient norm before clipping is many times its recent median. Adam divides by a second moment that "
            "has not yet seen it, so the next updates are too large.",
            "With clipping on, a single spike is harmless. Without: clip at about the recent median. If spikes come "
            "more and more often, lower the learning rate, and look at the layers whose share of the norm grew.",
            "z > 6 and ratio > 2 over 50 points, calibrated on 30 logged runs of 124M parameters",
            ("grad_norm", "grad_sq"),
            ("loss", "skipped"),
        ),
        RuleText(
            "update_norm_spike",
            "warning",
            "The step that the optimizer took is many times longer than its recent steps. At large scale this was seen "
            "before loss and gradient norm jumped.",
            "Where no learning rate is recorded, check the schedule at this step (a restart or a jump explains it). "
            "Otherwise lower Adam's beta2 or raise its epsilon, or limit the norm of the update.",
            "marin-community/marin#1368; Molybog et al. 2023, A Theory on Adam Instability",
            ("update_norm",),
            ("learning_rate",),
        ),
        RuleText(
            "dead_layer",
            "warning",
            "The layer got a gradient before and now gets exactly none: it no longer learns. Dead ReLUs, a gate that "
            "closed, an expert without tokens, a detach, or a layer frozen on purpose.",
            "If it was frozen on purpose, acknowledge this alert. Otherwise look at the activation in front of it "
            "(leaky or smooth, not ReLU), its initialisation, the learning rate, and whether something detaches it.",
            "Lu et al. 2019, Dying ReLU and Initialization",
            ("grad_max",),
            ("grad_nonfinite", "skipped"),
        ),
    )
}


def identity(run: str, attempt: int, finding: Finding) -> str:
    """Identity of the alert that a finding speaks of: the same in the agent and on the server.

    All rules of the catalogue open at most one alert per step, on the whole run: layers that are affected may
    change while it is open and take no part in the identity.
    """
    return alert_id(run, attempt, finding.rule, finding.opened_step, None)
