"""The class of a synthetic patch can be measured in its nuclei and not in its colour."""

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from eosin.demo.synthetic import CLASS_NAMES, SyntheticConfig
from eosin.demo.synthetic.dataset import draw_patient, labelled_patients

Features = npt.NDArray[np.float64]
CONFIG = SyntheticConfig(seed=20_260, labelled_patients=9, labelled_per_class=8)


@pytest.fixture(scope="module")
def patches() -> tuple[list[npt.NDArray[np.uint8]], npt.NDArray[np.str_], npt.NDArray[np.bool_]]:
    """(RGB patches, class names, whether each is for test) of nine patients."""
    rows = [row for index in range(len(labelled_patients(CONFIG))) for row in draw_patient(index, CONFIG)]
    images = [cv2.imdecode(np.frombuffer(row.image, np.uint8), cv2.IMREAD_COLOR_RGB) for row in rows]
    return images, np.array([row.label for row in rows]), np.array([row.split == "test" for row in rows])


def knn_accuracy(features: Features, labels: npt.NDArray[np.str_], test: npt.NDArray[np.bool_]) -> float:
    scaled = (features - features[~test].mean(axis=0)) / features[~test].std(axis=0)
    distance = ((scaled[test][:, None] - scaled[~test][None]) ** 2).sum(axis=2)
    nearest = labels[~test][np.argsort(distance, axis=1)[:, :10]]
    votes = np.stack([(nearest == name).sum(axis=1) for name in CLASS_NAMES], axis=1)
    return float(np.mean(np.array(CLASS_NAMES)[votes.argmax(axis=1)] == labels[test]))


def nuclear_features(patch: npt.NDArray[np.uint8]) -> list[float]:
    """Area fraction, and median log area and elongation of dark blobs in the red channel."""
    red = cv2.GaussianBlur(
        cv2.resize(patch[..., 0], None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC), (0, 0), 1.5
    )
    threshold, _ = cv2.threshold(red[red < 225], 0, 255, cv2.THRESH_BINARY_INV + cv2.THRESH_OTSU)
    dark = cv2.morphologyEx((red < threshold).astype(np.uint8), cv2.MORPH_OPEN, np.ones((5, 5), np.uint8))
    count, blobs, stats, _ = cv2.connectedComponentsWithStats(dark)
    found = []
    for blob in range(1, count):
        if stats[blob, cv2.CC_STAT_AREA] >= 80:
            spread = np.linalg.eigvalsh(np.cov(np.argwhere(blobs == blob).T))
            found.append((np.log(stats[blob, cv2.CC_STAT_AREA]), np.sqrt(spread[1] / spread[0])))
    size, elongation = np.median(found, axis=0) if found else (0.0, 1.0)
    return [float(dark.mean()), float(size), float(elongation)]


def test_three_measures_of_the_nuclei_tell_the_class(patches: tuple) -> None:  # type: ignore[type-arg]
    images, labels, test = patches
    features = np.array([nuclear_features(image) for image in images])
    assert knn_accuracy(features, labels, test) > 0.7


def test_colour_does_not_tell_the_class(patches: tuple) -> None:  # type: ignore[type-arg]
    images, labels, test = patches
    pixels = np.stack([image.reshape(-1, 3).astype(float) for image in images])
    assert knn_accuracy(pixels.mean(axis=1), labels, test) < 0.35
    both = np.concatenate([pixels.mean(axis=1), pixels.std(axis=1)], axis=1)
    assert knn_accuracy(both, labels, test) < 0.4
