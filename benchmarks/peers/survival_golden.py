"""Golden values of survival: Cox models of lifelines and scikit-survival, and their concordance.

In an environment with lifelines 0.30 and scikit-survival 0.28 (the package needs neither):

    python benchmarks/peers/survival_golden.py tests/data/golden/survival.safetensors

Kept of each case: features, times, events, λ, the log risk of every patient, centred, and Harrell's C. λ is
of the mean over events; lifelines takes the mean over patients, scikit-survival the sum.
"""

import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np


def main(target: Path) -> None:
    """Write every golden value to `target`."""
    import pandas as pd
    import safetensors.numpy
    from lifelines import CoxPHFitter
    from lifelines.utils import concordance_index
    from sksurv.linear_model import CoxPHSurvivalAnalysis
    from sksurv.metrics import concordance_index_censored

    values: dict[str, np.ndarray] = {}
    # Patients, features, λ, whether times are whole numbers with ties (Breslow's way: scikit-survival's).
    cases = {"plain": (80, 4, 0.0, False), "ridge": (80, 12, 0.1, False), "ties": (90, 6, 0.05, True),
             "wide": (60, 90, 0.1, False), "wide_ties": (50, 70, 0.3, True)}  # fmt: skip
    for number, (name, (num, dim, penalty, is_tied)) in enumerate(cases.items()):
        random = np.random.default_rng(number)
        features = random.normal(size=(num, dim)) * random.uniform(0.2, 5.0, dim) + random.normal(size=dim)
        scaled = (features - features.mean(axis=0)) / features.std(axis=0)
        times = random.exponential(np.exp(-scaled[:, :4] @ [0.8, -0.5, 0.0, 0.3]))
        times = np.ceil(times * 3) if is_tied else times
        events = random.random(num) < 0.7
        pairs = np.array(list(zip(events, times, strict=True)), dtype=[("event", bool), ("time", float)])
        model = CoxPHSurvivalAnalysis(alpha=penalty * events.sum(), ties="breslow", tol=1e-14, n_iter=500)
        risk = scaled @ model.fit(scaled, pairs).coef_
        if not is_tied:
            frame = pd.DataFrame(scaled).rename(columns=str).assign(time=times, event=events)
            # It standardises once more, by the deviation of num − 1.
            fitter = CoxPHFitter(penalizer=penalty * events.mean() * (num - 1) / num)
            fitter.fit(frame, "time", "event", fit_options={"precision": 1e-12})
            theirs = scaled @ fitter.params_.to_numpy()
            print(name, "lifelines from scikit-survival:", np.abs(theirs - risk).max())
            risk = theirs
        index = concordance_index(times, -risk, events)
        other = concordance_index_censored(events, times, risk)[0]
        print(name, index, other)
        values |= {f"{name}.features": features, f"{name}.times": times, f"{name}.events": events,
                   f"{name}.penalty": np.array([penalty]), f"{name}.risk": risk - risk.mean(),
                   f"{name}.c_index": np.array([index])}  # fmt: skip
    about = {"made_by": "benchmarks/peers/survival_golden.py", "lifelines": version("lifelines"),
             "scikit-survival": version("scikit-survival")}  # fmt: skip
    safetensors.numpy.save_file(values, target, about)
    print(target, len(values), about)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
