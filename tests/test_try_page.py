"""Try your own, in Streamlit's own test harness: pictures of every kind, and what each victim says of them."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from streamlit.testing.v1 import AppTest

from engine import datasets, records
from engine.overrides import with_overrides
from engine.presets import PRESETS
from engine.records import GALLERY, Run
from tests.app import EXAMPLE, button, opened, own_copy, words
from tests.test_handwriting import encoded, header

PAGE = "pages/try.py"
PAPER = Image.new("L", (30, 30), 200)
pytestmark = pytest.mark.usefixtures("place")


def an_eight(ground: int = 255) -> Image.Image:
    """A test image of the digit 8, large, on paper."""
    images, labels = datasets.read("digits", Path("nowhere"), train=False)
    eight = np.pad(images[np.flatnonzero(labels == 8)[0], 0], 6).repeat(4, axis=0).repeat(4, axis=1)
    return Image.fromarray(np.abs(ground - np.rint(255 * eight)).astype(np.uint8))


def uploaded(content: bytes, name: str = "digit.png", run: str = EXAMPLE) -> AppTest:
    test = opened(PAGE, run=run, try_source="Upload a picture")
    kind = {"png": "image/png", "jpg": "image/jpeg", "webp": "image/webp"}[name.rpartition(".")[2]]
    test.file_uploader(key="try_upload").upload(name, content, kind)
    return test.run()


def test_an_uploaded_digit_is_brought_to_form_voted_on_and_certified() -> None:
    test = uploaded(encoded(an_eight()))
    text = words(test)
    assert not test.exception
    assert "2. Inverted" in [image.proto.imgs[0].caption for image in test.get("image")]
    assert "The **clean** victim answers **8**, and no change smaller than" in text
    assert "The **poisoned** victim" in text
    assert len(test.get("plotly_chart")) == 1


@pytest.mark.parametrize("mode", ["P", "RGBA", "I;16"])
def test_other_kinds_of_picture_are_read_alike(mode: str) -> None:
    grey = an_eight()
    picture = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257) if mode == "I;16" else grey.convert(mode)
    test = uploaded(encoded(picture))
    assert not test.exception
    assert "victim answers **8**" in words(test)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (encoded(an_eight())[:500], "cut short or damaged"),
        (header(20_000, 20_000), "at most 24 million pixels"),
        (b"a text that is called digit.png", "must be a PNG, JPEG or WebP"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "must be a PNG, JPEG or WebP"),
        (encoded(PAPER, save_all=True, append_images=[Image.new("L", (30, 30), 9)]), "animated"),
        (encoded(PAPER), "stands out from its edges"),
    ],
    ids=["cut short", "huge", "text", "svg", "animated", "empty"],
)
def test_what_does_not_fit_is_refused_in_one_sentence(content: bytes, sentence: str) -> None:
    test = uploaded(content)
    assert not test.exception
    assert [sentence in error.value for error in test.error] == [True]
    assert not test.get("plotly_chart")


def test_what_a_browser_claims_to_have_drawn_is_checked() -> None:
    for drawn, sentence in (("javascript:alert(1)", "must come as text"), (7, "must come as text")):
        test = opened(PAGE, run=EXAMPLE)
        test.session_state["sheet 0 kept"] = drawn
        test.run()
        assert not test.exception
        assert [sentence in error.value for error in test.error] == [True]


def test_a_test_image_can_be_taken_and_drawn_on() -> None:
    test = opened(PAGE, run=EXAMPLE, try_source="A test image")
    test.number_input(key="try_image").set_value(3).run()
    assert "Test image 3, digit" in test.get("image")[0].proto.imgs[0].caption
    before = [line for line in words(test).splitlines() if "victim" in line and "**" in line]
    button(test, "Draw on it").click().run()
    assert not test.exception
    assert test.session_state["try_source"] == "Draw"
    after = [line for line in words(test).splitlines() if "victim" in line and "**" in line]
    assert len(before) == len(after) >= 2


def test_draws_seed_and_alpha_matter_and_too_few_draws_abstain() -> None:
    test = opened(PAGE, run=EXAMPLE, try_source="A test image")
    test.select_slider(key="try_n").set_value(10).run()
    unanimous = "10 of 10 votes"
    assert unanimous in words(test)
    test.select_slider(key="try_alpha").set_value(0.0001).run()
    assert not test.exception
    assert "abstains" in words(test)


def test_a_run_without_weights_says_so_and_offers_the_example(place: Path) -> None:
    run = own_copy(place)
    other = Run(place / "0123456789abcdef")
    run.directory.rename(other.directory)
    for path in (other.directory / "victims").iterdir():
        path.unlink()
    test = opened(PAGE, run=other.id)
    assert any("keeps no weights" in info.value for info in test.info)
    button(test, "Open the example").click().run()
    assert not test.exception
    assert not any("keeps no weights" in info.value for info in test.info)


def test_a_run_that_was_cancelled_before_its_victims_were_trained_says_so(place: Path) -> None:
    config = Run(GALLERY / EXAMPLE).config.model_copy(update={"seed": 3})
    run = own_copy(place, config=config, state="cancelled")
    for path in (run.directory / "victims").iterdir():
        path.unlink()
    test = opened(PAGE, run=run.id)
    assert any("was cancelled before its victims were trained" in info.value for info in test.info)
    assert not any("keeps no weights" in info.value for info in test.info)
    assert button(test, "Open the example")


@pytest.mark.parametrize("page", [PAGE, "pages/image.py"])
def test_damaged_weights_are_said_to_be_so(place: Path, page: str) -> None:
    run = own_copy(place)
    other = run.directory.rename(place / "0123456789abcdef")
    (other / "victims" / "clean-0.safetensors").write_bytes(b"no weights")
    records.write_tensors(other / "victims" / "poisoned-0.safetensors", unknown=np.zeros(3, dtype=np.float32))
    test = opened(page, run=other.name)
    assert not test.exception
    assert ["cannot be used" in warning.value for warning in test.warning] == [True, True]


def test_colour_data_sets_take_uploads_of_any_size(place: Path, folder: Path) -> None:
    import torch

    from engine.models import build

    typed = ["dataset=folder:fruit", "threat.target_class=1", "data.train_size=100", "data.validation_size=60"]
    config = with_overrides(PRESETS["smoke"].config, [*typed, "architecture=mlp"])
    run = own_copy(place, config=config)
    run.write_json(
        "report.json", (run.report or {}) | {"class_names": ["apple", "pear", "plum"], "target_name": "pear"}
    )
    for arm in ("clean", "poisoned"):
        model = build("mlp", shape=(3, 8, 8), num_classes=3, generator=torch.Generator().manual_seed(1))
        records.write_tensors(
            run.directory / "victims" / f"{arm}-0.safetensors",
            **{name: tensor.numpy() for name, tensor in model.state_dict().items()},
        )
    buffer = BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8)).save(buffer, "WEBP")
    test = uploaded(buffer.getvalue(), "photo.webp", run=run.id)
    assert not test.exception
    assert "Its centre, scaled to 8×8 pixels" in [image.proto.imgs[0].caption for image in test.get("image")]
    assert "victim" in words(test)
    assert "Draw" not in test.get("button_group")[0].options
    delta = np.random.default_rng(1).uniform(-0.1, 0.1, (30, 3, 8, 8)).astype(np.float32)
    records.write_tensors(run.directory / "poison.safetensors", delta=delta, indices=np.arange(60, 90))
    (run.directory / "evolution.safetensors").unlink()
    alone = opened("pages/image.py", run=run.id, number="29")
    assert not alone.exception
    assert "Poison image 29 is training image 89 of pear" in words(alone)
    assert any(
        f"answers **{name}**" in words(alone) or "abstains" in words(alone) for name in ("apple", "pear", "plum")
    )


def test_the_gallery_keeps_what_this_page_needs() -> None:
    assert {path.name for path in (GALLERY / EXAMPLE / "victims").iterdir()} >= {
        "clean-0.safetensors",
        "poisoned-0.safetensors",
    }
