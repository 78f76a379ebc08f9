"""Pictures in prompts: the families' layouts, codes that are computed once, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import unmask
from unmask.cli import main
from unmask.errors import UserError
from unmask.modalities import Text
from unmask.modalities.codes import Codes
from unmask.models import Model
from unmask.pictures import PictureFile, open_picture, parted, to_uri, with_pictures
from unmask.random import Random
from unmask.samplers import LowConfidence

DATA = Path(__file__).parent / "data"
TOKENIZERS = {"mmada": "magvitv2", "dimoo": "dimoo_vqvae"}


def noise(folder: Path, name: str = "a.png", size: tuple[int, int] = (64, 64), seed: int = 0) -> str:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / name)
    return str(folder / name)


def fixture(name: str) -> Model:
    return unmask.load(DATA / name, dtype="float32", image_tokenizer=DATA / TOKENIZERS[name])


def text(model: Model) -> Text:
    assert isinstance(model.modality, Text) and model.modality.reader is not None
    return model.modality


class Known:
    """Codes that are known already; counts pictures."""

    def __init__(self, codes: torch.Tensor):
        self.codes, self.asked = codes, []

    def __call__(self, pictures, grid):
        self.asked += [(str(picture), grid) for picture in pictures]
        return self.codes.expand(len(pictures), *grid)


# ---------------------------------------------------------------------------------------------------------- layouts


def test_mmadas_question_and_greedy_answer_are_those_of_its_own_code():
    reference, model = load_file(DATA / "mmada" / "reference.safetensors"), fixture("mmada")
    known = Known(reference["image_codes"].view(1, 4, 4))
    text(model).reader.codes = known  # pyright: ignore[reportOptionalMemberAccess]
    canvas = model.modality.encode([with_pictures("What is it?", ["x.png"])], 16)
    prompt = reference["mmu_prompt"]
    assert known.asked == [("x.png", (4, 4))]  # num_vq_tokens is 16
    assert torch.equal(canvas.ids[:, : prompt.shape[1]], prompt) and canvas.ids.shape[1] == prompt.shape[1] + 16
    sampler = LowConfidence(steps=8, block=8, temperature=0.0)
    answer = sampler(model.policy(ban=False), canvas, Random.root(0, "trace").fold(torch.arange(1)))
    assert torch.equal(answer.x, reference["mmu_greedy_new16_steps8_block8"][:, prompt.shape[1] :])


def test_dimoos_pictures_stand_before_the_last_id_and_the_answer_between_its_marks(tmp_path):
    model = fixture("dimoo")
    assert model.images is not None and model.image_tokenizer is not None
    picture, role = noise(tmp_path, size=(48, 32)), model.images.roles
    codes = model.image_tokenizer.encode(model.image_tokenizer.from_pictures([open_picture(picture)], (48, 32)))
    (a, b, c), (d, e, f) = (codes[0] + model.images.offset).tolist()
    end = role["row_end"]
    shown = [role["image"], a, b, c, end, d, e, f, end, role["image_end"]]
    said = model.tokenizer("<system>Be brief.</system><user>What?</user>", add_special_tokens=False)["input_ids"]
    chat = with_pictures([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What?"}], [picture])
    canvas = model.modality.encode([chat], 5)
    expected = [*said[:-1], *shown, said[-1], role["answer"], *[model.ids.mask] * 5, role["answer_end"]]
    assert canvas.ids.tolist() == [expected] and canvas.attend is None
    assert canvas.slots.tolist() == [[len(expected) - 6 + i for i in range(5)]]
    assert canvas.blank is not None and canvas.blank.ids.unique().tolist() == [model.ids.mask]
    two = model.modality.encode([with_pictures("What?", [picture, picture])], 5)
    assert two.ids.tolist()[0].count(role["image"]) == 2
    pad = model.tokenizer.convert_tokens_to_ids("<|reserved_token_254|>")
    x, filled = model.modality.encode_answers(["Two."], 8)
    told = len(model.tokenizer("Two.")["input_ids"])
    assert x[0, told:].tolist() == [pad] * (8 - told) and filled.sum() == told + 1
    assert model.modality.visible(x) == ["Two."]
    default = model.tokenizer.decode(two.ids[0, :40])
    assert default.startswith("<system>You are a multimodal model")


@torch.no_grad()
@pytest.mark.parametrize("name", TOKENIZERS)
def test_rows_with_and_without_pictures_share_a_batch(name, tmp_path):
    """Logits of the slots are those of each prompt alone: pads are hidden, slots sit where each row has them."""
    model = fixture(name)
    model.tokenizer.chat_template = model.tokenizer.chat_template or "{{ messages[0]['content'] }}"
    small, large = noise(tmp_path), noise(tmp_path, "b.png", (96, 64), 1)
    prompts = [with_pictures("What is it?", [small]), "Hello", with_pictures("And these?", [large, small])]
    slots, policy = 4, model.policy()
    canvas, x = model.modality.encode(prompts, slots), torch.full((3, slots), policy.k)
    for row, prompt in enumerate(prompts):
        at = torch.tensor([[row, slot] for slot in range(slots)])
        one = model.modality.encode([prompt], slots)
        alone = policy(one, x[:1], at * torch.tensor([0, 1]))
        assert one.attend is None
        torch.testing.assert_close(policy(canvas, x, at), alone, atol=2e-5, rtol=0)


def test_pictures_without_a_size_of_the_model_keep_their_shape_up_to_a_number_of_codes(tmp_path):
    model = fixture("dimoo")
    reader = text(model).reader
    assert reader is not None
    for size, most, grid in (
        ((48, 32), 4096, (2, 3)),
        ((50, 47), 4096, (2, 3)),  # cut to whole codes
        ((5, 5), 4096, (1, 1)),
        ((160, 80), 8, (2, 4)),
        ((1000, 4), 8, (1, 8)),
    ):
        reader.most_codes = most
        known = Known(torch.zeros(1, 1, 1, dtype=torch.int64))
        known.tokenizer = model.image_tokenizer  # pyright: ignore[reportAttributeAccessIssue]
        reader.codes = known  # pyright: ignore[reportAttributeAccessIssue]
        reader([noise(tmp_path, size=size)])
        assert known.asked[0][1] == grid


def test_prompts_with_pictures_are_plain_data(tmp_path):
    picture = open_picture(noise(tmp_path))
    chat = with_pictures([{"role": "system", "content": "s"}, {"role": "user", "content": "u"}], ["a.png", "b.png"])
    assert json.loads(json.dumps(chat)) == chat
    assert parted(chat) == ([{"role": "system", "content": "s"}, {"role": "user", "content": "u"}], ["a.png", "b.png"])
    model = fixture("mmada")
    by_name, by_text = (
        model.modality.encode([with_pictures("?", [source])], 4).ids
        for source in (str(tmp_path / "a.png"), to_uri(picture))
    )
    assert torch.equal(by_name, by_text)
    parts = [{"role": "user", "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]}]
    assert torch.equal(model.modality.encode([parts], 4).ids, model.modality.encode(["Hello"], 4).ids)


# ------------------------------------------------------------------------------------------------------------ codes


class Counting:
    """An image tokenizer whose codes are the mean of each square of pixels."""

    codes, factor = 256, 16

    def __init__(self):
        self.seen = 0

    def state_dict(self):
        return {"weight": torch.ones(3)}

    def from_pictures(self, pictures, size):
        return torch.stack([torch.from_numpy(np.asarray(one.resize(size), np.float32)) for one in pictures])

    def encode(self, pixels):
        self.seen += len(pixels)
        return pixels.unflatten(1, (-1, 16)).unflatten(3, (-1, 16)).mean((2, 4, 5)).long()


def test_codes_of_a_file_are_computed_once_per_content_and_grid(tmp_path):
    tokenizer = Counting()
    codes, files = (
        Codes(lambda: tokenizer),
        [PictureFile(Path(noise(tmp_path, f"{i}.png", seed=i % 2))) for i in range(4)],
    )
    first = codes(files, (4, 4))
    assert tokenizer.seen == 2 and torch.equal(first[0], first[2]) and not torch.equal(first[0], first[1])
    assert torch.equal(codes(files[::-1], (4, 4)), first.flip(0)) and tokenizer.seen == 2
    codes(files, (2, 2))
    assert tokenizer.seen == 4
    noise(tmp_path, "0.png", seed=7)  # another picture under the same name
    assert not torch.equal(codes(files[:1], (4, 4)), first[:1]) and tokenizer.seen == 5
    codes([files[0].open()] * 2, (4, 4))
    assert tokenizer.seen == 7  # a picture in memory has no file to remember


def test_codes_outlive_the_process_in_a_folder_if_one_is_named(tmp_path):
    file, folder = PictureFile(Path(noise(tmp_path))), tmp_path / "codes"
    first = Codes(Counting)
    first.folder = folder
    x = first([file], (4, 4))
    kept = list(folder.rglob("*.safetensors"))
    assert len(kept) == 1 and not list(folder.rglob(".*"))
    tokenizer = Counting()
    again = Codes(lambda: tokenizer)
    again.folder = folder
    assert torch.equal(again([file], (4, 4)), x) and tokenizer.seen == 0
    for rubbish in (b"", b"no array", kept[0].read_bytes()[:-9]):
        kept[0].write_bytes(rubbish)
        fresh = Codes(Counting)
        fresh.folder = folder
        with pytest.raises(UserError, match="delete it"):
            fresh([file], (4, 4))
    for codes in (torch.full((4, 4), 256), torch.full((4, 4), -1), torch.zeros(4, 5), torch.zeros(4, 4)):
        save_file({"codes": codes.to(torch.int32) if codes.any() else codes}, kept[0])
        with pytest.raises(UserError, match="does not hold"):
            fresh([file], (4, 4))


# ----------------------------------------------------------------------------------------------------- command line


@pytest.mark.parametrize("name", TOKENIZERS)
def test_texts_about_pictures_are_sampled(name, tmp_path, capsys):
    words = ["sample", str(DATA / name), "--image_tokenizer", str(DATA / TOKENIZERS[name]), "--prompt", "What is it?"]
    words += ["--answer_length", "8", "--image"]
    outputs = []
    for picture in (noise(tmp_path), noise(tmp_path, "b.png", seed=1), noise(tmp_path, "c.png")):
        assert main([*words, picture]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[2] and outputs[0].endswith("\n")
    assert main([*words, str(tmp_path / "a.png"), "--image", str(tmp_path / "b.png")]) == 0


def test_wrong_pictures_in_prompts_are_one_line_and_exit_code_2(tmp_path, capsys):
    good, out = noise(tmp_path), ["--to", "image", "--out", str(tmp_path / "x.png")]
    (tmp_path / "cut.png").write_bytes(Path(good).read_bytes()[:99])
    mmada = [str(DATA / "mmada"), "--image_tokenizer", str(DATA / "magvitv2")]
    for words, said in (
        ([*mmada, "--image", str(tmp_path / "absent.png")], "absent.png cannot be read"),
        ([*mmada, "--image", str(tmp_path)], "cannot be read"),
        ([*mmada, "--image", str(tmp_path / "cut.png")], "cut.png is no picture"),
        ([*mmada, "--image", __file__], "is no picture"),
        ([*mmada, "--image", "data:image/gif;base64,x"], "is no picture"),
        ([*mmada, "--image", good, *out], "leave out --to image"),
        ([str(DATA / "mmada"), "--image", good], "no image tokenizer"),
        ([str(DATA / "llada"), "--image", good], "reads no pictures"),
        ([str(DATA / "dream"), "--image", good], "reads no pictures"),
    ):
        assert main(["sample", *words, "--prompt", "What?", "--answer_length", "8"]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1, error


def test_conversations_that_have_no_layout_are_refused(tmp_path):
    picture, model = noise(tmp_path), fixture("dimoo")
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    with pytest.raises(UserError, match="one turn of the user"):
        model.modality.encode([with_pictures(turns, [picture])], 4)
    with pytest.raises(UserError, match="needs a turn of the user"):
        with_pictures([{"role": "system", "content": "a"}], [picture])
    for part in ({"type": "image"}, {"type": "video", "video": "x"}, "text", {"type": "text", "text": 3}):
        with pytest.raises(UserError, match="a part of a prompt"):
            model.modality.encode([[{"role": "user", "content": [part]}]], 4)
