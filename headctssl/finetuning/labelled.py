"""Labelled: the scans or studies that are learnt from or judged, with their labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headctssl.contract import LabelSpec
from headctssl.finetuning.cohort import Cohort
from headctssl.finetuning.outputs import pooled_outputs
from headctssl.loading.sampler import draw_from_bag
from headctssl.preprocessing.index import CaseIndex

__all__ = ["Labelled", "labelled_scans", "labelled_studies"]


@dataclass(frozen=True)
class Labelled:
    """Stored scans, and labels of them or of the studies they belong to."""

    index: CaseIndex
    labels: NDArray[np.float32]  # (n, L) of scans or (s, L) of studies, NaN = unknown
    studies: tuple[tuple[int, ...], ...] | None = None  # rows of the index of each study; None: every scan by itself
    notes: tuple[str, ...] = ()  # sentences on studies that contradict themselves

    def __len__(self) -> int:
        """Scans, or studies: how many rows of labels."""
        return len(self.labels)

    @property
    def labels_of_scans(self) -> NDArray[np.float32]:
        """(n, L) by row of the index: those of the scan, or of its study; NaN where it is of no study."""
        if self.studies is None:
            return self.labels
        table = np.full((len(self.index), self.labels.shape[1]), np.nan, np.float32)
        for labels, rows in zip(self.labels, self.studies, strict=True):
            table[list(rows)] = labels
        return table

    @property
    def first_scans(self) -> list[str]:
        """A case id per row of the labels: the scan's, or that of the study's first scan."""
        ids = self.index.case_ids
        return list(ids) if self.studies is None else [ids[rows[0]] for rows in self.studies]

    def outputs(self, labels: Sequence[LabelSpec], scans: Tensor) -> Tensor:
        """Outputs of the head, one row per row of the labels.

        Args:
            labels: of the classifier.
            scans: what the head says of every scan of the index, in order.
        """
        return scans if self.studies is None else pooled_outputs(labels, scans, self.studies)

    def read(self, order: Tensor, most: int, seed: int, epoch: int, first: int) -> tuple[Tensor, Tensor | None]:
        """The scans that a batch reads, and for studies which of the batch each belongs to.

        Args:
            order: int64 (B,) rows of the labels.
            most: scans of a study that are drawn at most.
            seed: the run's seed.
            epoch: the epoch, from 0.
            first: position of the batch's first sample in the epoch.

        Returns:
            int64 (S,) rows of the index, and int64 (S,) from 0, None where every scan is by itself.
        """
        if self.studies is None:
            return order, None
        bags = [draw_from_bag(self.studies[row], most, seed, epoch, first + k) for k, row in enumerate(order.tolist())]
        sizes = torch.tensor([len(bag) for bag in bags])
        rows = torch.tensor([row for bag in bags for row in bag])
        return rows, torch.repeat_interleave(torch.arange(len(bags)), sizes)


def labelled_scans(cohort: Cohort, index: CaseIndex) -> Labelled:
    """Every scan by itself.

    Args:
        cohort: gives the labels.
        index: the scans.
    """
    return Labelled(index, cohort.labels(index.case_ids))


def labelled_studies(cohort: Cohort, index: CaseIndex) -> Labelled:
    """The scans by study; a study whose scans contradict each other in every label that is known is left out.

    Args:
        cohort: gives labels, subjects and sessions.
        index: the scans.
    """
    studies, labels, notes = cohort.studies(index.case_ids)
    known = np.flatnonzero(~np.isnan(labels).all(axis=1))
    if len(known) < len(studies):
        notes = (*notes, f"{len(studies) - len(known)} studies have none of the labels known and are left out")
    return Labelled(index, labels[known], tuple(tuple(studies[k]) for k in known.tolist()), notes)
