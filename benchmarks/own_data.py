"""Data of one's own to try: tables as CSV, digits as PNG files, with scikit-learn's results.

    python -m benchmarks.own_data FOLDER

writes iris, wine, breast cancer and diabetes, as scikit-learn ships them, and `houses`, which is
made up: 20,640 rows like those of the California housing data (skewed numbers, a text, missing
values, a target that is no linear function of them and is cut off at 5), since these would need a
network. It prints what scikit-learn reaches with each in the splits and scales that `run.py` takes:
fitted to the training split, scored on the test split.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from sklearn import datasets
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from experiments.data.dataset import Splits
from experiments.data.folder import FolderImages
from experiments.data.tables import TableFile

TABLES = {"iris": "species", "wine": "cultivar", "breast_cancer": "diagnosis"}


def write(folder: Path) -> None:
    """Write all files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, target in TABLES.items():
        found = getattr(datasets, f"load_{name}")()
        table = pd.DataFrame(found.data, columns=found.feature_names)
        table.assign(**{target: found.target_names[found.target]}).to_csv(
            folder / f"{name}.csv", index=False
        )
    found = datasets.load_diabetes(as_frame=True, scaled=False)
    found.frame.rename(columns={"target": "progression"}).to_csv(
        folder / "diabetes.csv", index=False
    )
    houses(20_640).to_csv(folder / "houses.csv", index=False)
    digits = datasets.load_digits()
    for i, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = folder / "digits" / str(label) / f"{i:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.round(image * 255 / 16).astype(np.uint8)).save(path)


def houses(count: int, seed: int = 0) -> pd.DataFrame:
    """Make up a table like that of the California housing data."""
    rng = np.random.default_rng(seed)
    income = rng.lognormal(1.2, 0.45, count)
    age = rng.integers(1, 53, count)
    rooms = rng.lognormal(1.65, 0.3, count) + 0.1 * income
    people = rng.lognormal(7, 0.75, count).round()
    occupancy = rng.lognormal(1.05, 0.25, count)
    north, west = rng.uniform(32.5, 42, count), rng.uniform(114, 124.3, count)
    sea = np.abs(west - (114.5 + 0.85 * (north - 32.5))) + rng.exponential(0.3, count)
    where = np.select([sea < 0.5, sea < 1.5], ["near the sea", "an hour from it"], "inland")
    value = 0.4 * income**1.1 + 1.6 * np.exp(-sea) + 0.006 * age * (sea < 1) - 0.25 * occupancy
    value += 0.05 * rooms - 0.3 * (north > 38) + rng.gumbel(0.3, 0.25, count)
    bedrooms = np.where(rng.random(count) < 0.01, np.nan, rooms / 5 + rng.normal(0, 0.05, count))
    columns = {"income": income, "age": age, "rooms": rooms, "bedrooms": bedrooms}
    columns |= {"people": people, "occupancy": occupancy, "latitude": north, "longitude": -west}
    return pd.DataFrame(columns | {"where": where, "value": value.clip(0.15, 5)}).round(4)


def of(splits: Splits, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs, one row an example, and targets of a split."""
    arrays = getattr(splits, part).arrays
    inputs = arrays["sequence"] if "sequence" in arrays else arrays["image"] / 255
    return inputs.reshape(len(inputs), -1), arrays.get("label", arrays.get("target")).ravel()


def main(folder: Path) -> None:
    """Write the files and print the results."""
    write(folder)
    for name, target in TABLES.items():
        splits = TableFile(path=str(folder / f"{name}.csv"), target=target).load()
        fitted = LogisticRegression(max_iter=5000).fit(*of(splits, "train"))
        print(f"{name}: logistic regression, accuracy {fitted.score(*of(splits, 'test')):.3f}")
    splits = FolderImages(path=str(folder / "digits"), workers=0).load()
    fitted = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
    fitted.fit(*of(splits, "train"))
    print(f"digits: logistic regression, accuracy {fitted.score(*of(splits, 'test')):.3f}")
    for name, target in {"diabetes": "progression", "houses": "value"}.items():
        splits = TableFile(path=str(folder / f"{name}.csv"), target=target).load()
        unit = float(splits.test.arrays["unit"][0])
        for model in (Ridge(), HistGradientBoostingRegressor(random_state=0)):
            model.fit(*of(splits, "train"))
            inputs, wanted = of(splits, "test")
            error = model.predict(inputs) - wanted
            print(
                f"{name}: {type(model).__name__}, squared error {np.mean(error**2):.3f}, "
                f"absolute error {np.abs(error).mean() * unit:.4g}"
            )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
