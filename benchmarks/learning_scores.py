"""Learning scores: what each row of ``benchmarks.learning`` says of the synthetic test cases, and their differences."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Scores:
    """The folder of one task: a file per row with its readouts' scores (n, L), the labels and the subjects."""

    folder: Path
    task: str  # digest; scores of another task are not read

    def save(
        self,
        name: str,
        truth: NDArray[np.float64],
        subjects: NDArray[np.int64],
        scores: dict[str, NDArray[np.float64]],
    ) -> None:
        """Keep the scores of a row.

        Args:
            name: method, encoder and seed, ``METHOD__CONFIG__seedS``.
            truth: labels (n, L) of the test cases.
            subjects: whose scan it is, (n,).
            scores: (n, L) per readout.
        """
        import numpy as np

        self.folder.mkdir(parents=True, exist_ok=True)
        found = {readout: values.astype(np.float32) for readout, values in scores.items()}
        labels, patients = truth.astype(np.int8), subjects.astype(np.int32)
        with (self.folder / f"{name}.npz").open("wb") as file:
            np.savez_compressed(file, task=np.array(self.task), truth=labels, subjects=patients, **found)

    def load(self, *parts: str) -> dict[int, dict[str, NDArray[Any]]]:
        """What is kept of a method's seeds.

        Args:
            parts: of the name before the seed: method or baseline, encoder, what else tells runs apart; or empty.
        """
        import numpy as np

        found = {}
        for path in sorted(self.folder.glob("__".join(part for part in (*parts, "seed*.npz") if part))):
            with np.load(path, allow_pickle=False) as file:
                if file["task"] == self.task:
                    found[int(path.stem.rpartition("seed")[2])] = {key: file[key] for key in file.files}
        return found

    def differences(self, method: str, config: str, variant: str = "") -> list[dict[str, Any]]:
        """Mean AUROC of a method over its seeds minus that of the baselines that are here, with intervals.

        Args:
            method: of runs.
            config: encoder.
            variant: what else the names of these runs have.
        """
        return [
            row
            for readout in ("linear", "attentive")
            for other, setting in (("random", config), ("histogram", ""))
            if (row := self._difference((method, config, variant), readout, (other, setting)))
        ]

    def _difference(self, run: tuple[str, str, str], readout: str, baseline: tuple[str, str]) -> dict[str, Any] | None:
        import numpy as np

        from headctssl.metrics.statistics import bootstrap, weighted_auroc

        (method, config, _), (other, _) = run, baseline
        runs, beside = self.load(*run), self.load(*baseline)
        if not runs or not beside:
            return None
        any_run = next(iter(runs.values()))
        truth, subjects = any_run["truth"] > 0, any_run["subjects"]
        ours = [kept[readout] for kept in runs.values()]
        theirs = [kept[readout if other == "random" else "linear"] for kept in beside.values()]

        def area(sets: list[NDArray[Any]], weights: NDArray[np.float64]) -> NDArray[np.float64]:
            parts = [weighted_auroc(truth[:, i], s[:, i], weights) for s in sets for i in range(truth.shape[1])]
            return np.asarray(np.mean(parts, axis=0))

        def gap(weights: NDArray[np.float64]) -> NDArray[np.float64]:
            return area(ours, weights) - area(theirs, weights)

        result = bootstrap(gap, subjects, num_resamples=2000, seed=0)
        every = np.ones((1, len(truth)))
        return {
            "method": method,
            "config": config,
            "readout": readout,
            "beside": other,
            "seeds": sorted(runs),
            "beside_seeds": len(beside),
            "auroc": short(float(area(ours, every)[0])),
            "difference": short(float(gap(every)[0])),
            "ci": [short(v) for v in (result.intervals[0] if result.intervals else None) or ()],
        }


def short(number: float | None) -> float | None:
    """Four digits of a number."""
    return None if number is None else float(f"{number:.4g}")
