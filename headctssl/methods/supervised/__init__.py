"""Supervised: voxels are classified, with labels that each dataset has only a part of."""
