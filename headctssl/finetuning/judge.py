"""Judge: what a trained classifier says of its validation cases, and where its training cases lie."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from headctssl.contract import Contract
from headctssl.finetuning.calibrate import Calibration, calibrate
from headctssl.finetuning.held_out import outcome_of, outputs_of, pooled_of
from headctssl.finetuning.prepare import Job
from headctssl.finetuning.reference import FEWEST_PATIENTS, fit_reference, save_reference
from headctssl.finetuning.tasks import Classifier, Features
from headctssl.finetuning.whole_head import encode_stored
from headctssl.metrics.outcome import write_predictions
from headctssl.metrics.studies import by_study, write_studies_beside
from headctssl.training.distributed import Process

__all__ = ["VALIDATION_FILE", "Judge"]

VALIDATION_FILE = "validation_predictions.csv"
"""Predictions of the validation cases before the temperature, which was fitted on them; with attention over scans
those of studies lie beside it, see `write_studies_beside`."""

_MOST_CASES = 2000  # training cases that the reference is taken of


@dataclass(frozen=True)
class Judge:
    """A trained classifier of a run; every process of the run must call its functions."""

    job: Job
    classifier: Classifier
    process: Process

    def validate(self) -> Calibration:
        """Predict the validation cases, write them, and fit the temperature on them."""
        job = self.job
        if not job.cohort.validation:
            return Calibration(1.0, "temperature 1: there are no validation cases to fit it on")
        index = job.index.subset(job.cohort.validation)
        outputs = outputs_of(job, self.classifier, index, self.process)
        outcome = outcome_of(job, index, outputs, 1.0)
        if self.process.is_main:
            write_predictions(job.folder / VALIDATION_FILE, outcome)
            if job.by_study:
                studies = by_study(outcome, job.cohort.session, "attention", pooled_of(job, outputs, 1.0))
                write_studies_beside(job.folder / VALIDATION_FILE, studies if studies.has_several else None)
        judged = job.labelled(job.cohort.validation)
        return calibrate(job.settings.labels, judged.outputs(job.settings.labels, outputs), judged.labels)

    def describe(self, contract: Contract) -> None:
        """Write reference.safetensors, where there are patients enough.

        Args:
            contract: of the classifier as it was saved.
        """
        job, cohort = self.job, self.job.cohort
        some = cohort.train[:: -(-len(cohort.train) // _MOST_CASES)]
        index = job.index.subset(some)
        subjects = cohort.subjects(index.case_ids)
        if np.unique(subjects).size < FEWEST_PATIENTS:
            return
        features = self._features(some)
        held_out = self._features(cohort.validation) if cohort.validation else None
        if self.process.is_main:
            reference = fit_reference(features, subjects, held_out, contract.weights_hash)
            assert reference is not None, "patients were counted"
            save_reference(job.folder, reference)

    def _features(self, case_ids: tuple[str, ...]) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        settings = self.job.settings
        found = encode_stored(
            Features(self.classifier.encoder.to(self.job.device)),
            self.job.index.subset(case_ids),
            settings.input,
            batch_size=settings.task.eval_batch_size,
            num_workers=settings.training.num_workers,
            device=self.job.device,
            process=self.process,
        )
        return np.asarray(found.double().numpy())
