from __future__ import annotations

import json
import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from client.bundle import Bundle, BundleFacts, bundle_digest, read_bundle, write_bundle
from client.prediction import predict_cohort
from client.site_model import site_inputs
from flexmoe_core.checkpoint import read_checkpoint, write_checkpoint
from flexmoe_core.errors import CheckpointError
from flexmoe_core.model import build_model
from flexmoe_core.site_effect import SiteEffect
from tests.client.conftest import SiteFolder
from tests.client.coordinator import coordinate, make_cpu_site


@pytest.fixture
def written(site: SiteFolder, tmp_path: Path) -> tuple[Path, Bundle]:
    """A bundle's folder, and what was written into it: random arrays, weights of a local encoder too."""
    coordinator = coordinate(site.study(), make_cpu_site(site.path, tmp_path / "state"))
    data, terms = site.read(), coordinator.terms
    inputs = site_inputs(terms, data)
    model = build_model(terms.study.modality_names, inputs, 2, coordinator.table, terms.method.model, seed=5)
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            parameter.normal_(generator=torch.Generator().manual_seed(index))
    facts = BundleFacts(
        site=data.name,
        terms=terms,
        table=coordinator.table,
        inputs=inputs,
        prior=(0.25, 0.75),
        rounds=3,
        preprocessing=dict(data.preprocessing),
    )
    draw = np.random.default_rng(5).normal
    slopes = {one.name: draw(size=(*one.shape, 2)) for one in inputs}
    effect = SiteEffect(model.modalities, 0.6, draw(size=2), draw(size=(len(model.modalities), 2)), slopes)
    write_bundle(tmp_path / "bundle", model, effect, facts)
    return tmp_path / "bundle", Bundle(facts, model, effect, "")


def test_a_bundle_predicts_the_bits_of_the_model_in_memory(site: SiteFolder, written: tuple[Path, Bundle]) -> None:
    folder, kept = written
    bundle = read_bundle(folder)
    assert bundle.facts == kept.facts
    for cohort in site.read().cohorts.values():
        expected = predict_cohort(kept, cohort)
        assert predict_cohort(bundle, cohort).tobytes() == expected.tobytes()


def test_the_digest_names_the_content(tmp_path: Path, written: tuple[Path, Bundle]) -> None:
    folder, kept = written
    again = write_bundle(tmp_path / "again", kept.model, kept.effect, kept.facts)
    assert read_bundle(folder).digest == bundle_digest(folder) == again
    louder = replace(kept.effect, kept=0.7)
    assert write_bundle(tmp_path / "louder", kept.model, louder, kept.facts) != again
    with torch.no_grad():
        kept.model.head.bias[0] += 1
    assert write_bundle(tmp_path / "other", kept.model, kept.effect, kept.facts) != again


def test_a_bundle_is_for_its_owner_alone(written: tuple[Path, Bundle]) -> None:
    folder = written[0]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o600}


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
@pytest.mark.parametrize("change", ["missing", "empty", "truncated", "one bit"])
def test_a_damaged_bundle_is_refused_by_name(written: tuple[Path, Bundle], name: str, change: str) -> None:
    file = written[0] / name
    data = bytearray(file.read_bytes())
    match change:
        case "missing":
            file.unlink()
        case "empty":
            file.write_bytes(b"")
        case "truncated":
            file.write_bytes(data[:-2])
        case "one bit":
            data[len(data) // 2] ^= 1
            file.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"bundle/model\."):
        read_bundle(written[0])


def test_facts_that_were_edited_are_refused(written: tuple[Path, Bundle]) -> None:
    """Another prior, or another scale of a column, would go unnoticed into every prediction."""
    file = written[0] / "model.json"
    sealed = json.loads(file.read_text())
    sealed["facts"]["prior"] = [0.75, 0.25]
    file.write_text(json.dumps(sealed))
    with pytest.raises(CheckpointError, match=r"model\.json: changed"):
        read_bundle(written[0])


def test_other_checkpoints_are_no_bundles(tmp_path: Path, written: tuple[Path, Bundle]) -> None:
    write_checkpoint(tmp_path / "model", {"x": np.zeros(2)}, {"round": 1})
    with pytest.raises(CheckpointError, match=r"model\.json"):
        read_bundle(tmp_path)


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
def test_facts_or_weights_of_another_version_are_refused_in_words(written: tuple[Path, Bundle]) -> None:
    folder, kept = written
    model, effect, facts = kept.model, kept.effect, kept.facts
    write_bundle(folder, model, effect, facts.model_copy(update={"prior": "even"}))
    with pytest.raises(CheckpointError, match="not a bundle of this version"):
        read_bundle(folder)
    write_bundle(folder, model, effect, facts.model_copy(update={"inputs": facts.inputs[:-1]}))
    with pytest.raises(
        CheckpointError, match=r"arrays of another model \(effect/slopes/scan, encoders\.scan-encoder"
    ):
        read_bundle(folder)


def test_the_facts_can_be_read_without_us(written: tuple[Path, Bundle]) -> None:
    arrays, facts = read_checkpoint(written[0] / "model")
    assert facts["site"] == "cleveland"
    assert facts["preprocessing"]["labs"]["columns"][0]["unit"] == "mg/dl"
    assert "head.bias" in arrays
