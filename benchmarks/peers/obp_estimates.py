"""Off-policy estimates by Open Bandit Pipeline, in an environment of its own:

    python obp_estimates.py arrays.npz estimates.json

Reads the arrays that `off_policy.py` writes and says what each estimator of obp makes of them.
"""

import json
import sys
from typing import Any

import numpy as np
from obp.ope import (
    DirectMethod,
    DoublyRobust,
    InverseProbabilityWeighting,
    ReplayMethod,
    SelfNormalizedDoublyRobust,
    SelfNormalizedInverseProbabilityWeighting,
    SelfNormalizedSlateIndependentIPS,
    SelfNormalizedSlateRewardInteractionIPS,
    SelfNormalizedSlateStandardIPS,
    SlateCascadeDoublyRobust,
    SlateIndependentIPS,
    SlateRewardInteractionIPS,
    SlateStandardIPS,
    SwitchDoublyRobust,
)


def actions(x: dict[str, Any]) -> dict[str, Any]:
    """One slot: (n,) arrays and distributions over m actions, (n, m)."""
    given = {
        "reward": x["reward"],
        "action": x["action"],
        "position": np.zeros(len(x["action"]), dtype=int),
        "action_dist": x["evaluated"][:, :, None],
    }
    scored = given | {"pscore": x["logging"]}
    model = {"estimated_rewards_by_reg_model": x["model"][:, :, None]}
    best = np.zeros_like(x["evaluated"])
    best[np.arange(len(best)), x["evaluated"].argmax(axis=1)] = 1.0
    weighed = {
        "IPS": InverseProbabilityWeighting(),
        "clipped IPS": InverseProbabilityWeighting(lambda_=10.0),
        "SNIPS": SelfNormalizedInverseProbabilityWeighting(),
    }
    modelled = {
        "DR": DoublyRobust(),
        "SNDR": SelfNormalizedDoublyRobust(),
        "switch-DR": SwitchDoublyRobust(lambda_=10.0),
    }
    found = {name: one.estimate_policy_value(**scored) for name, one in weighed.items()}
    found |= {name: one.estimate_policy_value(**scored, **model) for name, one in modelled.items()}
    unscored = {name: value for name, value in given.items() if name in ("position", "action_dist")}
    found["DM"] = DirectMethod().estimate_policy_value(**unscored, **model)
    found["replay method"] = ReplayMethod().estimate_policy_value(
        **given | {"action_dist": best[:, :, None]}
    )
    return found


def slates(x: dict[str, Any]) -> dict[str, Any]:
    """Lists of k slots: (n, k) arrays, and (n, k, m) of what stands in each slot."""
    n, k = x["reward"].shape
    given = {
        "slate_id": np.repeat(np.arange(n), k),
        "reward": x["reward"].ravel(),
        "position": np.tile(np.arange(k), n),
    }
    whole = {
        "pscore": np.repeat(x["logging_prefix"][:, -1], k),
        "evaluation_policy_pscore": np.repeat(x["evaluated_prefix"][:, -1], k),
    }
    slot = {
        "pscore_item_position": x["logging_slot"].ravel(),
        "evaluation_policy_pscore_item_position": x["evaluated_slot"].ravel(),
    }
    prefix = {
        "pscore_cascade": x["logging_prefix"].ravel(),
        "evaluation_policy_pscore_cascade": x["evaluated_prefix"].ravel(),
    }
    kinds = {
        "IPS": (SlateStandardIPS, whole),
        "SNIPS": (SelfNormalizedSlateStandardIPS, whole),
        "IIPS": (SlateIndependentIPS, slot),
        "SNIIPS": (SelfNormalizedSlateIndependentIPS, slot),
        "RIPS": (SlateRewardInteractionIPS, prefix),
        "SNRIPS": (SelfNormalizedSlateRewardInteractionIPS, prefix),
    }
    found = {
        name: kind(len_list=k).estimate_policy_value(**given, **weights)
        for name, (kind, weights) in kinds.items()
    }
    cascade = SlateCascadeDoublyRobust(len_list=k, n_unique_action=x["chance"].shape[2])
    found["DR"] = cascade.estimate_policy_value(
        **given,
        **prefix,
        action=x["action"].ravel(),
        q_hat=x["model"].ravel(),
        evaluation_policy_action_dist=x["chance"].ravel(),
    )
    return found


if __name__ == "__main__":
    arrays, out = sys.argv[1:]
    with np.load(arrays) as file:
        parts = {
            kind: {
                name.removeprefix(f"{kind}."): file[name]
                for name in file.files
                if name.startswith(f"{kind}.")
            }
            for kind in ("actions", "slates")
        }
    estimates = {"one slot": actions(parts["actions"]), "lists": slates(parts["slates"])}
    with open(out, "w", encoding="utf-8") as file:
        json.dump(
            {a: {b: float(x) for b, x in those.items()} for a, those in estimates.items()}, file
        )
